//! How keys that are whole numbers lie: where they lie close together, an index is walked along once instead of looking each
//! of them up. The source is asked for it, or it is read out of the bytes that pass through to a receiver. Pure. It must
//! never name a range that one of the keys is outside of: that row would count as missing.

/// The least and the greatest of some keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    least: i64,
    greatest: i64,
    rows: u64,
}

/// Up to so many numbers for each row, all of which may be rows there, a walk is cheaper than the look-ups.
pub const SPREAD: u8 = 2;

impl Range {
    pub fn new(least: i64, greatest: i64, rows: u64) -> Self {
        Self { least, greatest, rows }
    }

    /// The range of the first column of rows in the binary format of COPY, without its header, if all have it in that of
    /// a whole number: the caller knows whether it is one. None: there are none, or these are no such rows.
    /// Source: PostgreSQL's documentation of COPY, "Binary Format".
    pub fn of(mut rows: &[u8]) -> Option<Self> {
        let mut range: Option<Self> = None;
        while let Some(columns) = take(&mut rows, 2).map(whole) {
            // The end of the data.
            if columns == -1 {
                break;
            }
            let key = field(&mut rows)??;
            let key = matches!(key.len(), 2 | 4 | 8).then(|| whole(key))?;
            for _ in 1..columns {
                field(&mut rows)?;
            }
            let Self { least, greatest, rows: before } = range.unwrap_or(Self { least: key, greatest: key, rows: 0 });
            range = Some(Self { least: least.min(key), greatest: greatest.max(key), rows: before + 1 });
        }
        range.filter(|_| rows.is_empty())
    }

    /// The condition that a column lies in it.
    pub fn holds(&self, column: &str) -> String {
        format!("{column} BETWEEN '{}' AND '{}'", self.least, self.greatest)
    }

    /// Whether the rows are a good part of all that can lie between the least and the greatest.
    pub fn is_dense(&self) -> bool {
        i128::from(self.greatest) - i128::from(self.least) < i128::from(self.rows) * i128::from(SPREAD)
    }
}

/// One column: outside None, the bytes end within it; inside, it is null.
fn field<'a>(rows: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match usize::try_from(whole(take(rows, 4)?)) {
        Ok(length) => take(rows, length).map(Some),
        Err(_) => Some(None),
    }
}

fn take<'a>(rows: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = rows.split_at_checked(length)?;
    *rows = rest;
    Some(taken)
}

/// A signed number in network order.
fn whole(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|b| b & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |number, byte| number << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of a key and one more column, which is null.
    fn row(key: &[u8]) -> Vec<u8> {
        [&[0, 2][..], &(key.len() as i32).to_be_bytes(), key, &(-1i32).to_be_bytes()].concat()
    }

    fn rows(keys: &[i32]) -> Vec<u8> {
        keys.iter().flat_map(|k| row(&k.to_be_bytes())).collect()
    }

    #[test]
    fn the_range_holds_every_key_in_any_order() {
        let range = Range::of(&rows(&[7, -3, 12])).unwrap();
        assert_eq!((range.least, range.greatest, range.rows), (-3, 12, 3));
        let extremes = [row(&i64::MIN.to_be_bytes()), row(&i64::MAX.to_be_bytes())].concat();
        let range = Range::of(&extremes).unwrap();
        assert_eq!((range.least, range.greatest), (i64::MIN, i64::MAX));
        assert!(!range.is_dense());
        assert_eq!(Range::of(&row(&(-2i16).to_be_bytes())).map(|r| r.least), Some(-2));
    }

    #[test]
    fn the_end_of_the_data_is_no_row() {
        let range = Range::of(&[rows(&[1, 2]), vec![0xff, 0xff]].concat()).unwrap();
        assert_eq!((range.least, range.greatest, range.rows), (1, 2, 2));
    }

    #[test]
    fn what_is_no_row_with_a_number_has_no_range() {
        assert_eq!(Range::of(&[]), None);
        assert_eq!(Range::of(&[0xff, 0xff]), None);
        assert_eq!(Range::of(&row(b"abc")), None);
        // A null key; a row that is cut off, wherever.
        assert_eq!(Range::of(&[&[0, 1][..], &(-1i32).to_be_bytes()].concat()), None);
        let whole = rows(&[1, 2]);
        for end in (1..whole.len()).filter(|end| end % (whole.len() / 2) != 0) {
            assert_eq!(Range::of(&whole[..end]), None, "cut off after {end} bytes");
        }
    }

    #[test]
    fn half_of_the_numbers_are_dense() {
        let of = |keys: &[i32]| Range::of(&rows(keys)).unwrap().is_dense();
        assert!(of(&[5]));
        assert!(of(&[1, 3, 5, 7]));
        assert!(!of(&[1, 4, 7, 10]));
    }
}
