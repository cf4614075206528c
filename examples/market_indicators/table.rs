//! A dated table of numbers and its binary form, in which prices travel to the jobs and results travel back.
//!
//! The form is zstd over this layout, all numbers little-endian:
//!
//! ```text
//! u32          number of rows
//! u8           number of columns
//! i32 x rows   dates, in days after 1970-01-01
//! f64 x rows   the first column's values, NaN where one is empty
//! ...          and so on for each column
//! ```

use std::fmt::Write as _;
use std::io::Read as _;

use anyhow::{Context, ensure};

use crate::dates::Date;

const HEADER_BYTES: usize = 5;

const COMPRESSION_LEVEL: i32 = 3;

/// Most bytes that are unpacked, so that a damaged table can't fill the memory.
const UNPACKED_BYTES: u64 = 256 * 1024 * 1024;

/// Columns of values, a date for each row; `None` is an empty value. Every column is as long as `dates`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Table {
    pub(crate) dates: Vec<Date>,
    pub(crate) columns: Vec<Vec<Option<f64>>>,
}

impl Table {
    /// Packs the table; see the module's description.
    ///
    /// # Errors
    ///
    /// When the compressor fails, or the table has more than 4 billion rows or 255 columns.
    pub(crate) fn encode(&self) -> anyhow::Result<Vec<u8>> {
        let mut layout = Vec::with_capacity(HEADER_BYTES + self.dates.len() * (4 + 8 * self.columns.len()));
        layout.extend(u32::try_from(self.dates.len()).context("too many rows")?.to_le_bytes());
        layout.extend(u8::try_from(self.columns.len()).context("too many columns")?.to_le_bytes());
        layout.extend(self.dates.iter().flat_map(|date| date.days().to_le_bytes()));
        for column in &self.columns {
            layout.extend(column.iter().flat_map(|value| value.unwrap_or(f64::NAN).to_le_bytes()));
        }
        zstd::bulk::compress(&layout, COMPRESSION_LEVEL).context("can't compress a table")
    }

    /// Unpacks a table.
    ///
    /// # Errors
    ///
    /// When the bytes aren't a packed table.
    pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<Table> {
        let mut layout = Vec::new();
        let unpacked = zstd::Decoder::with_buffer(bytes)
            .and_then(|decoder| decoder.take(UNPACKED_BYTES).read_to_end(&mut layout));
        unpacked.context("a table isn't compressed as it should be")?;

        let (header, rest) =
            layout.split_at_checked(HEADER_BYTES).context("a table ends before its header does")?;
        let rows: [u8; 4] = header[..4].try_into().expect("the header has 5 bytes");
        let (rows, columns) = (u64::from(u32::from_le_bytes(rows)), header[4]);
        ensure!(
            u64::try_from(rest.len()).ok() == Some(rows * (4 + 8 * u64::from(columns))),
            "a table of {rows} rows and {columns} columns can't have {} bytes",
            layout.len()
        );
        let rows = usize::try_from(rows).context("too many rows")?;

        let (dates, values) = rest.split_at(rows * 4);
        let dates = dates.chunks_exact(4).map(|bytes| {
            Date::from_days(i32::from_le_bytes(bytes.try_into().expect("chunks of 4 have 4 bytes")))
        });
        let values = values.chunks_exact(8).map(|bytes| {
            let value = f64::from_le_bytes(bytes.try_into().expect("chunks of 8 have 8 bytes"));
            Some(value).filter(|value| !value.is_nan())
        });
        let values: Vec<Option<f64>> = values.collect();
        let columns = match rows {
            0 => (0..columns).map(|_| Vec::new()).collect(),
            rows => values.chunks_exact(rows).map(<[_]>::to_vec).collect(),
        };
        Ok(Table { dates: dates.collect(), columns })
    }

    /// The table as text: a header line of `date` and the given names, then a line a row. A number reads back as exactly
    /// the same `f64`; an empty value is an empty field.
    pub(crate) fn to_csv(&self, names: &[&str]) -> String {
        let mut text = format!("date,{}\n", names.join(","));
        for (row, date) in self.dates.iter().enumerate() {
            text += &date.to_string();
            for column in &self.columns {
                text.push(',');
                if let Some(value) = column[row] {
                    write!(text, "{value}").expect("writing to a string doesn't fail");
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let dates = vec![Date::from_days(-1), Date::from_days(15_000)];
        Table { dates, columns: vec![vec![None, Some(0.1 + 0.2)], vec![Some(-1e-12), None]] }
    }

    #[test]
    fn tables_come_back_as_they_were() {
        let empty = Table { dates: Vec::new(), columns: vec![Vec::new(); 3] };
        for table in [table(), empty] {
            assert_eq!(Table::decode(&table.encode().expect("it encodes")).expect("it decodes"), table);
        }
    }

    #[test]
    fn damaged_tables_are_refused() {
        let packed = |layout: &[u8]| zstd::bulk::compress(layout, 3).expect("it compresses");
        assert!(Table::decode(b"no zstd").is_err());
        assert!(Table::decode(&packed(&[1, 0, 0])).is_err());
        assert!(Table::decode(&packed(&[1, 0, 0, 0, 1, 0, 0])).is_err());
        assert!(Table::decode(&packed(&[255; 64])).is_err());
    }

    #[test]
    fn text_has_a_line_a_row() {
        let text = table().to_csv(&["a", "b"]);
        assert_eq!(text, "date,a,b\n1969-12-31,,-0.000000000001\n2011-01-26,0.30000000000000004,\n");
    }
}
