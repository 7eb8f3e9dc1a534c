//! Fuzz tests of what is read of a table's file: its metadata, its index and its blocks. Each
//! part has a checksum: a part that is accepted is one that was written.

use std::os::unix::fs::FileExt;

use rangedb_fuzz::fuzz;

use super::TreeError;
use super::block_sizes::TableRows;
use super::index::Index;
use super::list::Tables;
use super::table_reader::part_of;
use super::test_fixture::{Fixture, Form, all, places};

fn fixture(form: Form) -> Fixture {
    let mut fixture = Fixture::new(form, 1);
    fixture.flush();
    fixture
}

#[test]
fn index_and_metadata() {
    for form in [Form::Ours, Form::Compressed] {
        let fixture = fixture(form);
        let tables = fixture.tables(&Tables::default());
        let reader = all(&tables).next().expect("a table");
        let table = &reader.table;
        let bytes = std::fs::read(&**table.path).expect("it is read");
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&bytes, 0).expect("it is written");
        let read = || {
            let rows = TableRows::read(table, &file)?;
            let index = Index::read(table, &file, rows)?;
            Ok::<_, TreeError>((rows, index.map(|index| index.len())))
        };
        let written = read().expect("it is whole");
        for (name, place) in [
            ("index", table.regions.tli),
            ("metadata", table.regions.metadata),
        ] {
            let (start, len) = (*place.offset(), place.size() as usize);
            let valid = bytes[start as usize..][..len].to_vec();
            let corpus = [valid.clone()];
            let tally = fuzz(name, &corpus, |changed, meter| {
                let mut changed = changed.to_vec();
                changed.resize(len, 0);
                file.write_all_at(&changed, start).expect("it is written");
                let found = meter.decode(read);
                file.write_all_at(&valid, start).expect("it is written");
                match found {
                    Ok(found) => {
                        assert_eq!(found, written, "{form:?}");
                        true
                    }
                    Err(_) => false,
                }
            });
            assert!(tally.accepted < tally.refused, "{form:?} {name}: {tally:?}");
        }
    }
}

#[test]
fn blocks() {
    for form in [Form::Ours, Form::Compressed] {
        let fixture = fixture(form);
        let tables = fixture.tables(&Tables::default());
        let reader = all(&tables).next().expect("a table");
        let bytes = std::fs::read(&**reader.table.path).expect("it is read");
        let part = |place| part_of(place).start as usize..part_of(place).end as usize;
        let places = places(reader).into_iter().take(4);
        let corpus: Vec<Vec<u8>> = places.map(|place| bytes[part(place)].to_vec()).collect();
        let content = |bytes: &[u8]| {
            reader
                .decode_block(bytes)
                .map(|block| block.as_slice().to_vec())
        };
        let written: Vec<Vec<u8>> = corpus
            .iter()
            .map(|block| content(block).expect("whole"))
            .collect();
        fuzz("blocks of tables", &corpus, |bytes, meter| {
            let Ok(block) = meter.decode(|| reader.decode_block(bytes)) else {
                return false;
            };
            let is_known = written
                .iter()
                .any(|known| known.as_slice() == &**block.as_slice());
            assert!(is_known, "{form:?}");
            true
        });
    }
}
