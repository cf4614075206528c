//! What corpora of the store begin with: rows that were written, and some that never are.

use lrts_core::fuzz::Script;
use redb::{Database, ReadableDatabase, ReadableTable};

use super::kinds::{everything, open};
use super::{SESSION, commit};
use crate::store::body::unseal;
use crate::store::tables::{self, JobKey};

/// A row: its table and key as the fuzz targets number them, and what is in it.
type Row = (u8, JobKey, Vec<u8>);

/// All rows of a store that has everything.
fn written() -> Vec<Row> {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    commit(&mut store, everything());
    drop(store);
    let database = Database::open(directory.path().join("records.redb")).unwrap();
    let transaction = database.begin_read().unwrap();
    let mut rows = Vec::new();
    let mut add = |table, key, row: &[u8]| rows.push((table, key, unseal(row).unwrap().to_vec()));
    for row in transaction.open_table(tables::APPLICATIONS).unwrap().iter().unwrap() {
        add(0, (0, 0), row.unwrap().1.value());
    }
    for (table, definition) in [(1, tables::SESSIONS), (2, tables::WORKERS)] {
        for row in transaction.open_table(definition).unwrap().iter().unwrap() {
            let (key, row) = row.unwrap();
            add(table, (key.value(), 0), row.value());
        }
    }
    for (table, definition) in [(3, tables::SUBMITS), (4, tables::KEYED), (5, tables::JOBS)] {
        for row in transaction.open_table(definition).unwrap().iter().unwrap() {
            let (key, row) = row.unwrap();
            add(table, key.value(), row.value());
        }
    }
    for row in transaction.open_table(tables::LARGE).unwrap().iter().unwrap() {
        add(6, (0, 0), row.unwrap().1.value());
    }
    for row in transaction.open_table(tables::SMALL).unwrap().iter().unwrap() {
        add(7, (0, 0), row.unwrap().1.value());
    }
    rows
}

fn number(row: &[u8], first: u64) -> Row {
    (3, (SESSION.0, first), row.to_vec())
}

pub(crate) fn rows() -> Vec<Vec<u8>> {
    let mut rows = written();
    // A submit of more jobs than there is memory for, and one beyond the last sequence.
    let (_, _, submit) = rows.iter().find(|(table, ..)| *table == 3).unwrap().clone();
    rows.push(number(&submit, u64::MAX - 1));
    rows.push(number(&huge(), 1));
    let script =
        |(table, key, row): Row| Script::new().byte(table).number(key.0).number(key.1).rest(&row).bytes();
    rows.into_iter().map(script).collect()
}

/// A submit that says that it has 2^32 - 1 jobs.
fn huge() -> Vec<u8> {
    let runs = [(0_u16, 0_u16, 1_u32, u32::MAX)];
    let row = rmp_serde::to_vec(&(1_u64, [0; 0], runs, [0; 0], [0; 0], None::<()>));
    row.unwrap()
}

pub(crate) fn stores() -> Vec<Vec<u8>> {
    let add = |script: Script, (table, key, row): &Row, whole: u8| {
        script.byte(*table).byte(whole).number(key.0).number(key.1).part(row)
    };
    let written: Vec<Row> = written().into_iter().filter(|(table, ..)| *table < 7).collect();
    let all = written.iter().fold(Script::new(), |script, row| add(script, row, 1));
    let torn = add(all.clone(), &written[3], 0);
    let huge = add(Script::new(), &number(&huge(), 1), 1);
    let keyed = written.iter().filter(|(table, ..)| *table == 4);
    let alone = keyed.fold(Script::new(), |script, row| add(script, row, 1));
    let place = |segment: u64, offset: u64, bytes: u64| {
        let row = [segment, offset, bytes].map(u64::to_le_bytes).concat();
        add(Script::new(), &(6, (SESSION.0, 1), row), 1)
    };
    let places = [(0, 10, 50), (0, 0, 4_096), (0, 0, 4_097), (u64::MAX, 0, 1), (3, u64::MAX, u64::MAX)];
    let places = places.map(|(segment, offset, bytes)| place(segment, offset, bytes));
    let two = add(
        add(place(1, 0, u64::MAX), &(6, (SESSION.0, 2), [1, 8, u64::MAX].map(u64::to_le_bytes).concat()), 1),
        &(6, (SESSION.0, 3), [2, 8, 9].map(u64::to_le_bytes).concat()),
        1,
    );
    [all, torn, huge, alone, two].into_iter().chain(places).map(Script::bytes).collect()
}
