//! Reloads, of good files and of broken ones.

use std::path::PathBuf;

use super::*;

/// A file of settings that is read again and again.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> (File, Arc<Settings>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rangedb.toml");
        std::fs::write(&path, text).expect("it is written");
        let read = {
            let path = path.clone();
            move || {
                check_file(&path)?;
                let mut raw = RawConfig::new();
                raw.add_file(&path)?;
                Ok(raw)
            }
        };
        let raw = read().expect("the file is valid");
        let config = Config::validate(&raw).expect("the settings are valid");
        let settings = Settings::new(raw, config, Box::new(read));
        let file = File {
            _folder: folder,
            path,
        };
        (file, settings)
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        std::fs::write(&self.path, text).expect("it is written");
    }
}

const GOOD: &str = "data-dir = \"d\"\nshards = 2\nmemory = \"1GiB\"\nslow-request = \"200ms\"\n";

fn names(of: &[SettingDifference]) -> Vec<&str> {
    of.iter().map(|setting| setting.name.as_str()).collect()
}

#[test]
fn what_can_change_while_the_node_runs_does_and_the_rest_is_named() {
    let (file, settings) = File::new(GOOD);
    assert!(!settings.is_slow(Duration::from_millis(199)));
    assert!(settings.is_slow(Duration::from_millis(200)));
    let same = settings.reload();
    assert_eq!(same.unchanged.len(), Key::ALL.len());
    let new = "data-dir = \"d\"\nshards = 2\nmemory = \"2GiB\"\nslow-request = \"1s\"\n\
               http-hosts = \"db.example\"\n";
    file.write(new);
    let answer = settings.reload();
    assert_eq!(names(&answer.applied), ["http-hosts", "slow-request"]);
    assert_eq!(names(&answer.needs_restart), ["memory"]);
    assert_eq!(answer.needs_restart[0].before, "1GiB");
    assert_eq!(answer.needs_restart[0].after, "2GiB");
    assert_eq!(answer.refused, []);
    assert_eq!(answer.unchanged.len(), Key::ALL.len() - 3);
    assert!(!settings.is_slow(Duration::from_millis(200)));
    assert!(settings.http().hosts.contains(&"db.example".to_owned()));
    let shown = settings.shown().node_settings;
    let of = |name: &str| {
        let found = shown.iter().find(|setting| setting.name == name);
        found.expect("there is one").clone()
    };
    assert_eq!(of("memory").in_force, "1GiB");
    assert_eq!(of("slow-request").in_force, "1s");
    assert!(of("slow-request").source.ends_with("rangedb.toml, line 4"));
    assert_eq!(of("gc-retention").source, "default");
    // What waits for the next start is named again.
    assert_eq!(names(&settings.reload().needs_restart), ["memory"]);
    file.write(new.replace("1s", "0ms"));
    settings.reload();
    assert!(!settings.is_slow(Duration::from_hours(24 * 365)));
}

#[test]
fn a_broken_file_changes_nothing_and_the_answer_names_line_and_reason() {
    let (file, settings) = File::new(GOOD);
    let before = settings.shown();
    // Each changes a setting that could change, too.
    let broken: [(&[u8], Option<u64>, &str); 21] = [
        (b"", None, "--data-dir DIR"),
        (b"slow-request = \n", Some(1), ""),
        (b"slow-request = \"1s\"\nlisten\n", Some(2), ""),
        (
            b"slow-request = \"1s\"\n\nlisten = 7400\n",
            Some(3),
            "HOST:PORT",
        ),
        (
            b"slow-request = \"1s\"\nslow-request = \"2s\"\n",
            Some(2),
            "",
        ),
        (b"slow-request = \"1s\"\nlisten = \"x:1\n", Some(2), ""),
        (b"slow-request = \"1s\"\nlisten = [\"x:1\"\n", Some(2), ""),
        (
            b"slow-request = \"1s\"\nlisten = { a = 1 }\n",
            Some(2),
            "text",
        ),
        (
            b"slow-request = \"1s\"\nlog-level = true\n",
            Some(2),
            "text",
        ),
        (b"slow-request = \"1s\"\nlog-level = 1.5\n", Some(2), "text"),
        (
            b"slow-request = \"1s\"\nlog-level = \"loud\"\n",
            Some(2),
            "debug",
        ),
        (b"slow-request = \"1s\"\nlog = \"xml\"\n", Some(2), "json"),
        (
            b"slow-request = \"1s\"\nslow-reqest = \"2s\"\n",
            Some(2),
            "slow-request",
        ),
        (
            b"slow-request = \"1s\"\nfoo = 1\n",
            Some(2),
            "the settings are",
        ),
        (
            b"[node]\nslow-request = \"1s\"\n",
            Some(1),
            "the settings are",
        ),
        (b"slow-request = \"1 second\"\n", Some(1), "1.5s"),
        (b"slow-request = \"1s\"\nmemory = \"1GB\"\n", Some(2), "MiB"),
        (
            b"slow-request = \"1s\"\nmemory = \"65MiB\"\n",
            Some(2),
            "128 MiB",
        ),
        (
            b"slow-request = \"1s\"\nhttp-hosts = \"a:80\"\n",
            Some(2),
            "without a port",
        ),
        (
            b"slow-request = \"1s\"\ncpus = \"0-99999999999\"\n",
            Some(2),
            "processor",
        ),
        (b"slow-request = \"1s\"\n# \xff\n", None, "UTF-8"),
    ];
    for (text, line, reason) in broken {
        let shown = String::from_utf8_lossy(text).into_owned();
        // The folder's name comes last, so that lines stay where they are.
        let whole: &[u8] = match (text, line) {
            (b"", _) => b"",
            _ if text.contains(&b'[') || shown.ends_with("x:1\n") => text,
            _ => &[text, b"data-dir = \"d\"\n"].concat(),
        };
        file.write(whole);
        let answer = settings.reload();
        assert_eq!(answer.refused.len(), 1, "{shown}");
        assert_eq!(answer.refused[0].line, line, "{shown}: {answer:?}");
        assert!(answer.refused[0].reason.contains(reason), "{answer:?}");
        assert!(answer.applied.is_empty() && answer.needs_restart.is_empty());
        assert_eq!(settings.shown(), before, "{shown}");
    }
    for wrong in ["shards = 0\n", "cluster-secret = 1\njoin = \"x\"\n"] {
        file.write(format!("{wrong}data-dir = \"d\"\nslow-request = \"1s\"\n"));
        let answer = settings.reload();
        assert!(
            answer.refused.len() == 1 || wrong.contains("join"),
            "{answer:?}"
        );
    }
    file.write(vec![b'#'; 2 << 20]);
    assert!(settings.reload().refused[0].reason.contains("longer"));
    std::fs::remove_file(&file.path).expect("it is there");
    assert!(settings.reload().refused[0].reason.contains("No such file"));
    std::fs::create_dir(&file.path).expect("the place is free");
    assert!(
        settings.reload().refused[0]
            .reason
            .contains("no regular file")
    );
}

#[test]
fn another_number_of_shards_counts_from_the_next_start() {
    let (file, settings) = File::new(GOOD);
    // The node has two shards, of which it gives up one since its start.
    let config = locked(&settings.in_force).config.clone();
    let config = config.with_shards(2, 1).expect("the memory is enough");
    settings.know_folder(1, &config);
    file.write(GOOD.replace("shards = 2", "shards = 4"));
    let answer = settings.reload();
    assert_eq!(names(&answer.needs_restart), ["shards"], "{answer:?}");
    let difference = &answer.needs_restart[0];
    assert_eq!((&*difference.before, &*difference.after), ("1", "4"));
    file.write(GOOD.replace("shards = 2", "shards = 20"));
    let answer = settings.reload();
    let refused = answer.refused.first().expect("the memory is too small");
    assert!(refused.reason.contains("20 shards need"), "{refused:?}");
}

#[test]
fn the_secret_is_never_shown() {
    let secret = "cluster-secret = \"hush\"\n";
    let (file, settings) = File::new(&format!("{GOOD}{secret}"));
    let changes = settings.changes();
    assert!(changes.contains("cluster-secret=(not shown)"), "{changes}");
    assert!(changes.contains("shards=2 (file "), "{changes}");
    file.write(format!("{GOOD}cluster-secret = \"hush2\"\n"));
    let answer = settings.reload();
    assert_eq!(names(&answer.needs_restart), ["cluster-secret"]);
    file.write(format!(
        "{GOOD}cluster-secret = \"{}\"\n",
        "hush".repeat(1000)
    ));
    let refused = settings.reload();
    let all = format!("{answer:?}{refused:?}{:?}{changes}", settings.shown());
    assert!(!all.contains("hush"), "{all}");
}
