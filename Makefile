# Build, install and test bucardo. `make help` says what there is; PG_CONFIG and DESTDIR work as with any extension.
#
#   make demo                              watch it work: does all set-up by itself (Debian 12 with Rust 1.95)
#   make test                              every test, with all set-up
#   make && sudo make install              build as yourself, install as root: the second step compiles nothing
#   make install DESTDIR=/tmp/pkg          for packagers
#
# The release build, without fault points, lies in target/stage/pgNN; nothing here ever installs a test build.

PG_CONFIG ?= $(firstword $(wildcard /usr/lib/postgresql/15/bin/pg_config) pg_config)
INSTALL   ?= install

NAME     := bucardo
VERSION  := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
PG_LABEL  = pg$(shell $(PG_CONFIG) --version 2>/dev/null | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
PKGLIBDIR = $(shell $(PG_CONFIG) --pkglibdir)
EXTDIR    = $(shell $(PG_CONFIG) --sharedir)/extension

STAGE   = target/stage/$(PG_LABEL)
PACKAGE = target/package/$(NAME)-$(VERSION)-$(PG_LABEL)
SOURCES := Cargo.toml Cargo.lock build.rs $(NAME).control $(shell find src sql -type f 2>/dev/null)

.DEFAULT_GOAL := all
.PHONY: all setup demo demo-stop test check bench bench-smoke fmt lint unit regress replication torture install uninstall package clean help
.DELETE_ON_ERROR:

all: $(STAGE)/.complete ## build the extension into target/stage

# The files of the extension, flat: where they go is decided by PG_CONFIG at installation.
$(STAGE)/.complete: $(SOURCES)
	tests/setup cargo-pgrx
	tests/stage "$(PG_CONFIG)" "$(STAGE)"

setup: ## packages and cargo-pgrx, for demo and test
	tests/setup

demo: ## three servers, real data, live changes; KEEP=1 leaves it running
	tests/demo/run start

demo-stop: ## end a demo that KEEP=1 left running
	tests/demo/run stop

test: ## all tests, with all set-up
	tests/run all

check: test

fmt lint unit regress replication bench bench-smoke: ## one kind of test each (make setup comes first)
	tests/run $@

# Handed on by place: SECONDS means something else to the shell.
torture: ## the random convergence test: SECONDS=600 SEED=7, both optional
	tests/run torture "$(SECONDS)" "$(SEED)"

install: all ## into the server of PG_CONFIG, below DESTDIR
	$(INSTALL) -d "$(DESTDIR)$(PKGLIBDIR)" "$(DESTDIR)$(EXTDIR)"
	$(INSTALL) -m 755 $(STAGE)/$(NAME).so "$(DESTDIR)$(PKGLIBDIR)/"
	$(INSTALL) -m 644 $(STAGE)/$(NAME).control $(STAGE)/$(NAME)--*.sql "$(DESTDIR)$(EXTDIR)/"

uninstall: ## what install put there
	rm -f "$(DESTDIR)$(PKGLIBDIR)/$(NAME).so" "$(DESTDIR)$(EXTDIR)/$(NAME).control" "$(DESTDIR)$(EXTDIR)"/$(NAME)--*.sql

package: all ## a tar archive to unpack at / of a machine with the same PostgreSQL
	rm -rf "$(PACKAGE)" "$(PACKAGE).tar.gz"
	$(MAKE) --no-print-directory install DESTDIR="$(CURDIR)/$(PACKAGE)" PG_CONFIG="$(PG_CONFIG)"
	tar -C "$(PACKAGE)" --owner=0 --group=0 --sort=name -czf "$(PACKAGE).tar.gz" .
	@echo "$(PACKAGE).tar.gz"

clean: ## everything that was built; the scratch folder of demo and test as well
	tests/demo/run clean
	rm -rf target

help: ## this list
	@sed -n 's/^\([a-z -]*\):[^#]*## \(.*\)/  \1 | \2/p' Makefile | column -t -s '|'
