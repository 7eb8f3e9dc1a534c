//! Layers, units and refusals of settings.

use rangedb_certificates::Ca;

use super::*;

fn raw(flags: &[(Key, &str)]) -> RawConfig {
    let mut raw = RawConfig::new();
    raw.add_flag(Key::DataDir, Some(&"data".to_owned()));
    for (key, value) in flags {
        raw.add_flag(*key, Some(&(*value).to_owned()));
    }
    raw
}

#[test]
fn flags_stand_above_variables_above_the_file_above_defaults() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("rangedb.toml");
    std::fs::write(
        &file,
        "listen = \"f:1\"\nmemory = \"1GiB\"\nlog = \"json\"\nshards = 2\n",
    )
    .expect("written");
    let mut raw = RawConfig::new();
    raw.add_file(&file).expect("read");
    let variables = [
        ("RANGEDB_LISTEN", "v:2"),
        ("RANGEDB_LOG", "text"),
        ("RANGEDB_ADDR", "x"),
        ("RANGEDB_CLUSTER", "x"),
    ];
    let variables = variables.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    assert_eq!(raw.add_variables(variables).expect("text"), [""; 0]);
    raw.add_flag(Key::Log, Some(&"json".to_owned()));
    raw.add_flag(Key::DataDir, Some(&"d".to_owned()));
    let config = Config::validate(&raw).expect("valid");
    assert_eq!(
        (config.listen.address.as_str(), config.logs.format),
        ("v:2", LogFormat::Json)
    );
    assert_eq!((config.memory, config.shards), (1 << 30, 2));
    let printed = raw.print();
    assert!(
        printed.contains("listen = \"v:2\" # variable RANGEDB_LISTEN"),
        "{printed}"
    );
    assert!(printed.contains("log = \"json\" # flag --log"), "{printed}");
    assert!(
        printed.contains("gc-retention = \"10m\" # default"),
        "{printed}"
    );
    printed
        .parse::<toml::Table>()
        .expect("the printed form is a file");
}

#[test]
fn unknown_keys_name_the_nearest() {
    let mut raw = RawConfig::new();
    let variables = [
        "RANGEDB_DATADIR",
        "RANGEDB_TIMEOUTS",
        "RANGEDB_SERVICE_HOST",
        "RANGEDB_PORT",
        "RANGEDB_NAME",
    ];
    let variables = variables.map(|name| (name.into(), "x".into()));
    let warnings = raw::misspelt(variables.clone().into_iter());
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(
        raw.add_variables(variables.into_iter()).expect("text"),
        [
            "variable RANGEDB_DATADIR: there is no such setting; did you mean RANGEDB_DATA_DIR?",
            "variable RANGEDB_TIMEOUTS: there is no such setting; did you mean RANGEDB_TIMEOUT?",
            "variable RANGEDB_SERVICE_HOST: there is no such setting",
            "variable RANGEDB_PORT: there is no such setting",
            "variable RANGEDB_NAME: there is no such setting",
        ]
    );
    assert_eq!(raw.text(Key::DataDir), "");
    let known = ["RANGEDB_TIMEOUT", "RANGEDB_DATA_DIR", "PATH"];
    let known = known.map(|name| (name.into(), "x".into()));
    assert!(raw::misspelt(known.into_iter()).is_empty());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("rangedb.toml");
    let mut refusal = |text: &str| {
        std::fs::write(&file, text).expect("written");
        let error = raw.add_file(&file).expect_err("it is not valid");
        assert!(matches!(error, BadConfig::File { .. }), "{error}");
        error.to_string()
    };
    let near = refusal("\nlisen = \"x\"\n");
    assert!(
        near.contains("line 2: lisen: there is no such setting; did you mean listen?"),
        "{near}"
    );
    // A short word is near to nothing.
    let far = refusal("foo = 1\n");
    assert!(far.contains("the settings are data-dir, listen,"), "{far}");
    assert!(refusal("lis").contains("line 1"));
}

#[test]
fn all_faults_are_named_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("rangedb.toml");
    let mut raw = RawConfig::new();
    std::fs::write(&file, "data-dir = 'd'\nlisen = 'x'\nhttp = {}\nfoo = 1\n").expect("written");
    let faults = raw
        .add_file(&file)
        .expect_err("three lines are wrong")
        .each();
    let faults: Vec<String> = faults.iter().map(BadConfig::to_string).collect();
    assert_eq!(faults.len(), 3, "{faults:?}");
    for (fault, line) in faults.iter().zip(["line 2", "line 3", "line 4"]) {
        assert!(fault.contains(line), "{faults:?}");
    }
    let text = "data-dir = 'd'\nshards = 0\nlog = 'xml'\ngc-retention = '0s'\nlisten = 'x'\n";
    std::fs::write(&file, text).expect("written");
    let mut raw = RawConfig::new();
    raw.add_file(&file).expect("all names are known");
    let faults = Config::validate_all(&raw).expect_err("four values are wrong");
    let shown = faults.to_string();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    for name in ["shards", "log", "gc-retention", "listen"] {
        let named = shown
            .lines()
            .any(|line| line.starts_with(&format!("{name} = ")));
        assert!(named, "{name}: {shown}");
    }
    // What is only wrong since nothing was given is one fault.
    let missing = Config::validate_all(&RawConfig::new()).expect_err("no folder");
    assert_eq!(missing.each().len(), 1);
}

#[test]
fn a_value_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let mut raw = RawConfig::new();
    let value = std::ffi::OsString::from_vec(b"d\xff".to_vec());
    let variables = [("RANGEDB_DATA_DIR".into(), value)].into_iter();
    let error = raw.add_variables(variables).expect_err("it is not UTF-8");
    assert!(error.to_string().contains("RANGEDB_DATA_DIR"), "{error}");
}

#[test]
fn a_refusal_names_what_was_typed() {
    let refusal = |key, value: &str| {
        let refused = Config::validate(&raw(&[(key, value)]));
        refused.expect_err(value).to_string()
    };
    for address in ["foo", "7400", "127.0.0.1:", "x:99999"] {
        let message = refusal(Key::Listen, address);
        assert!(
            message.starts_with(&format!("listen = {address:?}")),
            "{message}"
        );
    }
    let message = refusal(Key::Http, "127.0.0.1:7400");
    assert!(
        message.contains("--listen has the same address"),
        "{message}"
    );
    let message = refusal(Key::Cpus, "0-99999999999");
    assert!(message.contains("processor 99999999999"), "{message}");
    let message = refusal(Key::Memory, "5");
    assert!(
        message.contains("a shard needs at least 64 MiB"),
        "{message}"
    );
}

#[test]
fn bad_values_are_refused_with_the_rule() {
    for (key, value) in [
        (Key::DataDir, ""),
        (Key::Shards, "0"),
        (Key::Shards, "many"),
        (Key::Memory, "5"),
        (Key::Memory, "1GB"),
        (Key::RowCache, "1GB"),
        (Key::RowCache, "999TiB"),
        (Key::Log, "xml"),
        (Key::LogLevel, "inof"),
        (Key::LogLevel, "loud"),
        (Key::LogLevel, ""),
        (Key::LogLevel, "info,openraft=loud"),
        (Key::LogLevel, "a b=info"),
        (Key::SlowRequest, "100 ms"),
        (Key::GcRetention, "0.5"),
        (Key::GcRetention, "5ms"),
        (Key::GcRetention, ""),
        (Key::GcRetention, "-5s"),
        (Key::GcRetention, "5 s"),
        (Key::GcRetention, "5d"),
        (Key::GcRetention, "99999999999h"),
        (Key::DrainWait, "61s"),
        (Key::DrainWait, "soon"),
        (Key::Cpus, "9999"),
        (Key::Cpus, "a"),
        (Key::SplitAt, "b,a"),
        (Key::SplitAt, "a,,b"),
        (Key::Http, "nowhere"),
    ] {
        let error = Config::validate(&raw(&[(key, value)])).expect_err(value);
        assert!(error.to_string().contains(key.name()), "{error}");
    }
}

#[test]
fn rows_and_blocks_share_half_of_the_memory() {
    let divided = |row_cache: &str| {
        let flags = [
            (Key::Memory, "1GiB"),
            (Key::Shards, "2"),
            (Key::RowCache, row_cache),
        ];
        let memory = Config::validate(&raw(&flags))
            .expect("valid")
            .shard_memory();
        (memory.row_cache, memory.block_cache)
    };
    assert_eq!(divided(""), (128 << 20, 128 << 20));
    assert_eq!(divided("0"), (0, 256 << 20));
    assert_eq!(divided("384MiB"), (192 << 20, 64 << 20));
    // What is shown is a size with a unit, whatever the memory is divided by.
    let odd = raw(&[(Key::Memory, "12342042KiB"), (Key::Shards, "3")]);
    let shown = Config::validate(&odd)
        .expect("valid")
        .shown(&odd, Key::RowCache);
    assert!(shown.ends_with("iB"), "{shown}");
    let too_much = [(Key::Memory, "1GiB"), (Key::RowCache, "385MiB")];
    let error = Config::validate(&raw(&too_much)).expect_err("too much");
    assert!(error.to_string().contains("384 MiB"), "{error}");
}

#[test]
fn an_address_that_stands_for_all_is_refused_in_any_spelling() {
    fn member(key: Key, value: &str) -> RawConfig {
        raw(&[(key, value), (Key::ClusterSecret, "words")])
    }
    for host in [
        "0.0.0.0",
        "[::]",
        "::",
        "::0",
        "[::0]",
        "0:0:0:0:0:0:0:0",
        "0",
        "0x0",
        "000.0.0.0",
        "::ffff:0.0.0.0",
        "[::ffff:0:0]",
        "*",
        "",
    ] {
        let address = format!("{host}:7400");
        for key in [Key::Advertise, Key::Listen] {
            let refused = Config::validate(&member(key, &address));
            let error = refused.expect_err(&address).to_string();
            assert!(error.contains("--advertise"), "{address}: {error}");
        }
    }
    for address in ["127.0.0.1:7400", "[::1]:7400", "10.0.0.1:0"] {
        let taken = Config::validate(&member(Key::Advertise, address));
        assert_eq!(taken.expect("taken").advertise, address);
    }
    let alone = raw(&[(Key::Listen, "0.0.0.0:7400")]);
    assert!(Config::validate(&alone).is_ok());
}

#[test]
fn levels_are_words_perhaps_of_a_module() {
    for level in ["error", "debug", "off", "warn,rangedb_engine::wal=trace"] {
        let config = Config::validate(&raw(&[(Key::LogLevel, level)]));
        assert_eq!(config.expect(level).logs.level, level);
    }
}

#[test]
fn lists_of_keys_are_read() {
    let keys = vec![b"a".to_vec(), b"b,\\\xff".to_vec()];
    assert_eq!(parse_keys(r"a,b\,\\\xff"), Ok(keys));
    assert!(parse_keys(r"a\").is_err());
}

#[test]
fn durations_have_a_unit_or_count_seconds() {
    for (text, duration) in [
        ("2500ms", Duration::from_millis(2500)),
        ("1.5s", Duration::from_millis(1500)),
        (" 90s ", Duration::from_secs(90)),
        ("0.5m", Duration::from_secs(30)),
        ("2h", Duration::from_hours(2)),
        ("5", Duration::from_secs(5)),
    ] {
        let config = Config::validate(&raw(&[(Key::GcRetention, text)])).expect(text);
        assert_eq!(config.gc_retention, duration, "{text}");
    }
    for key in [Key::SlowRequest, Key::DrainWait] {
        let config = Config::validate(&raw(&[(key, "5")])).expect("seconds");
        let found = [config.logs.slow_request, config.http.drain_wait];
        assert!(found.contains(&Duration::from_secs(5)), "{key:?}");
    }
    let refused = Config::validate(&raw(&[(Key::GcRetention, "5d")])).expect_err("no unit");
    let message = refused.to_string();
    assert!(message.contains("flag --gc-retention"), "{message}");
    assert!(message.contains("1.5s"), "{message}");
}

#[test]
fn a_node_goes_by_its_own_names_and_those_of_the_settings() {
    let flags = [
        (Key::Listen, "db1.example:7400"),
        (Key::Http, "localhost:7480"),
        (Key::HttpHosts, "a.example, b.example"),
        (Key::HttpOrigins, "https://c.example"),
    ];
    let http = Config::validate(&raw(&flags)).expect("valid").http;
    for name in ["a.example", "b.example", "db1.example", "localhost"] {
        assert!(http.hosts.iter().any(|host| host == name), "{http:?}");
    }
    assert_eq!(http.origins, ["https://c.example"]);
    for bad in [
        (Key::HttpHosts, "a.example:80"),
        (Key::HttpHosts, "*"),
        (Key::HttpOrigins, "c.example"),
        (Key::HttpOrigins, "https://c.example/page"),
    ] {
        assert!(Config::validate(&raw(&[bad])).is_err(), "{bad:?}");
    }
}

#[test]
fn the_packaged_file_shows_every_setting_with_its_default() {
    let text = include_str!("../../packaging/rangedb.toml");
    let shown: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()))
        .collect();
    let names: Vec<&str> = shown
        .iter()
        .filter_map(|line| line.split(" = ").next())
        .collect();
    for key in Key::ALL {
        let count = names.iter().filter(|name| **name == key.name()).count();
        assert_eq!(count, 1, "{}", key.name());
    }
    assert_eq!(names.len(), Key::ALL.len(), "{names:?}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let read = |text: &str| {
        let file = folder.path().join("rangedb.toml");
        std::fs::write(&file, text).expect("written");
        let mut raw = RawConfig::new();
        raw.add_file(&file).expect("the file is valid");
        raw
    };
    // As it is shipped the file changes nothing.
    assert_eq!(read(text).print(), RawConfig::new().print());
    let all = read(&shown.join("\n"));
    for key in Key::ALL.iter().filter(|key| !key.default().is_empty()) {
        let value = all.parse(*key, |value| Ok(value.to_owned()));
        assert_eq!(value.expect("it is text"), key.default(), "{}", key.name());
    }
}

#[test]
fn settings_of_tls_need_each_other_and_good_files() {
    let ca = Ca::new("ca");
    let (node, other) = (
        ca.sign("node", &["localhost"]),
        ca.sign("other", &["localhost"]),
    );
    let (cert, key, other_key) = (node.certificate, node.key, other.key);
    let (ca_file, folder) = (ca.file(), ca.path(""));
    let tls = |flags: &[(Key, &str)]| {
        let config = Config::validate(&raw(flags)).expect("valid");
        config.listen.tls.as_ref().map(|tls| tls.required)
    };
    assert_eq!(tls(&[]), None);
    assert_eq!(tls(&[(Key::Tls, "off")]), None);
    let both = [(Key::TlsCert, cert.as_str()), (Key::TlsKey, &key)];
    assert_eq!(tls(&both), Some(true));
    for (mode, required) in [
        ("required", Some(true)),
        ("optional", Some(false)),
        ("off", None),
    ] {
        assert_eq!(tls(&[both[0], both[1], (Key::Tls, mode)]), required);
    }
    assert_eq!(tls(&[both[0], both[1], (Key::TlsCa, &ca_file)]), Some(true));

    let refused = |flags: &[(Key, &str)], key: &str, words: &str| {
        let message = match Config::validate(&raw(flags)) {
            Err(bad) if bad.key == key => bad.to_string(),
            other => panic!("{flags:?}: {other:?}"),
        };
        assert!(message.contains(words), "{message}");
    };
    refused(&both[..1], "tls-key", "must be given");
    refused(&both[1..], "tls-cert", "must be given");
    refused(&[(Key::TlsCa, &ca_file)], "tls-ca", "--tls-cert");
    refused(&[(Key::Tls, "required")], "tls", "needs a certificate");
    refused(
        &[both[0], both[1], (Key::Tls, "yes")],
        "tls",
        "required, optional or off",
    );
    let with_key = |key| [both[0], (Key::TlsKey, key)];
    refused(&with_key(&other_key), "tls-key", "not the key");
    refused(&with_key(&cert), "tls-key", "no private key");
    refused(&with_key("/nowhere/k"), "tls-key", "/nowhere/k");
    refused(&with_key(&folder), "tls-key", "no regular file");
    refused(
        &[(Key::TlsCert, &key), both[1]],
        "tls-cert",
        "no certificate",
    );
    refused(
        &[both[0], both[1], (Key::TlsCa, &key)],
        "tls-ca",
        "no certificate",
    );
    let broken = ca.path("broken.pem");
    std::fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
    )
    .expect("written");
    refused(
        &[(Key::TlsCert, &broken), both[1]],
        "tls-cert",
        "no good PEM",
    );
}

#[test]
fn a_certificate_is_shown_with_its_fingerprint_and_its_key_not_at_all() {
    let ca = Ca::new("ca");
    let node = ca.sign("node", &["localhost"]);
    let (cert, key) = (node.certificate, node.key);
    let raw = raw(&[(Key::TlsCert, &cert), (Key::TlsKey, &key)]);
    let config = Config::validate(&raw).expect("valid");
    let shown = config.shown(&raw, Key::TlsCert);
    assert!(shown.starts_with(&format!("{cert} (SHA-256 ")), "{shown}");
    assert_eq!(config.shown(&raw, Key::TlsKey), key);
    assert_eq!(config.shown(&raw, Key::Tls), "required");
    assert!(!format!("{config:?}").contains("PRIVATE"));
}
