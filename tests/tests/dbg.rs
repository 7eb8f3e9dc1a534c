use rangedb_tests::sim::run::run;
#[test] fn dbg() { let s: u64 = std::env::var("S").unwrap().parse().unwrap(); println!("{:?}", run(s)); }
