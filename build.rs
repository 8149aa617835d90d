//! One linker flag, for the shared library alone. It stands before the way of a change; it must never generate code.
//!
//! `cargo pgrx` reads the SQL declarations from a section of the library that the linker would drop as unused. It would
//! add this flag to every crate by itself, and so compile every dependency twice: once for the library, once for the tests.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-cdylib=-Wl,--no-gc-sections");
}
