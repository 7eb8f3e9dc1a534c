//! `package`: the Debian packages `rangedb` and `rangedb-tools`, a tar of the same files, and the
//! checksums of all three.
//!
//! The binaries write their own man pages and completions; everything else that the packages hold
//! lies in `server/packaging`. The files of one commit are the same whenever they are made, by the
//! same compiler. Needs what every Debian has: dpkg-deb, tar, gzip, install and sha256sum.

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use crate::process::{self, output};
use crate::{Outcome, root};

const USAGE: &str = "usage: package [--bin-dir DIR] [--out DIR] [--revision N] \
                     [--compression xz|gzip|none]";
/// Where packages are written, from the workspace's folder.
const OUT: &str = "target/package";
/// What the packages hold.
const PACKAGING: &str = "server/packaging";
/// The folders of the manual that the binaries write, and where packages have them.
const MANUAL: [(&str, &str); 4] = [
    ("man1", "usr/share/man/man1"),
    ("bash", BASH_COMPLETIONS),
    ("zsh", "usr/share/zsh/vendor-completions"),
    ("fish", "usr/share/fish/vendor_completions.d"),
];
/// Here bash looks for a file with the name of the command.
const BASH_COMPLETIONS: &str = "usr/share/bash-completion/completions";

/// A package, and where its files come from and go to.
struct Package {
    name: &'static str,
    /// The file of its fields.
    control: &'static str,
    binary: &'static str,
    /// Its scripts, in `debian`.
    scripts: &'static [&'static str],
    /// Files of `server/packaging` with their places and modes. Those in `etc` belong to the operator:
    /// an upgrade keeps what was changed in them.
    files: &'static [(&'static str, &'static str, &'static str)],
    /// Folders of `server/packaging` and their places; all files in them are installed.
    folders: &'static [(&'static str, &'static str)],
}

const PACKAGES: [Package; 2] = [
    Package {
        name: "rangedb",
        control: "control",
        binary: "rangedb",
        scripts: &["postinst", "prerm", "postrm"],
        folders: &[("../monitoring", "usr/share/rangedb/monitoring")],
        files: &[
            ("rangedb.toml", "etc/rangedb/rangedb.toml", "644"),
            // It may hold secrets; systemd reads it as root.
            ("rangedb.env", "etc/rangedb/rangedb.env", "600"),
            (
                "systemd/rangedb.service",
                "usr/lib/systemd/system/rangedb.service",
                "644",
            ),
            (
                "systemd/rangedb@.service",
                "usr/lib/systemd/system/rangedb@.service",
                "644",
            ),
            ("sysusers.conf", "usr/lib/sysusers.d/rangedb.conf", "644"),
            ("../README.md", "usr/share/doc/rangedb/README.md", "644"),
            (
                "../OPERATING.md",
                "usr/share/doc/rangedb/OPERATING.md",
                "644",
            ),
            ("../METRICS.md", "usr/share/doc/rangedb/METRICS.md", "644"),
        ],
    },
    Package {
        name: "rangedb-tools",
        control: "control-tools",
        binary: "loadgen",
        scripts: &[],
        folders: &[],
        files: &[],
    },
];

/// The options of the command. Paths are absolute, as other programs run in the workspace's folder.
struct Options {
    /// Where the binaries are, if they are not to be built.
    bin_dir: Option<String>,
    out: String,
    /// The Debian revision: it rises with each package of one release.
    revision: String,
    /// How dpkg-deb compresses the packages.
    compression: String,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Options, String> {
        let mut options = Options {
            bin_dir: None,
            out: text(&root().join(OUT))?,
            revision: "1".to_owned(),
            compression: "xz".to_owned(),
        };
        let absolute = |path: &str| text(&std::path::absolute(path).map_err(|e| e.to_string())?);
        for pair in words.chunks(2) {
            match pair {
                ["--bin-dir", folder] => options.bin_dir = Some(absolute(folder)?),
                ["--out", folder] => options.out = absolute(folder)?,
                ["--revision", revision] => options.revision = (*revision).to_owned(),
                ["--compression", kind] => options.compression = (*kind).to_owned(),
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }
}

/// What the names and fields of the packages say.
struct Facts {
    release: String,
    architecture: String,
    /// The C library that the binaries need.
    libc: String,
    /// The time that all files have, in seconds since 1970.
    time: String,
}

/// Makes the packages, the tar and the checksums.
pub fn run(words: &[&str]) -> Outcome {
    let options = Options::parse(words)?;
    let binaries = match &options.bin_dir {
        Some(folder) => folder.clone(),
        None => build()?,
    };
    let facts = Facts::of(&binaries)?;
    let work = tempfile::tempdir().map_err(|error| error.to_string())?;
    let out = &options.out;
    process::run("mkdir", &["-p", out])?;
    let mut made = Vec::new();
    let all = format!("rangedb-{}-{}", facts.release, facts.architecture);
    let tree_of_all = text(&work.path().join(&all))?;
    for package in &PACKAGES {
        let tree = text(&work.path().join(package.name))?;
        package.install(&binaries, &tree)?;
        package.install(&binaries, &tree_of_all)?;
        made.push(package.build(&tree, &options, &facts)?);
    }
    let name = format!("{all}.tar.gz");
    let tar = [
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        &format!("--mtime=@{}", facts.time),
        "--use-compress-program=gzip -n",
        &format!("--directory={}", text(work.path())?),
        &format!("--file={out}/{name}"),
        "--create",
        &all,
    ];
    process::run("tar", &tar)?;
    made.push(name);
    write_sums(out, &made)
}

/// Builds release binaries that know their commit, and gives their folder.
fn build() -> Result<String, String> {
    let describe = ["describe", "--always", "--exclude=*", "--abbrev=12"];
    let dirty = "--dirty=-modified";
    let commit = output("git", &[&describe[..], &[dirty]].concat());
    let commit = format!(
        "RANGEDB_COMMIT={}",
        commit.as_deref().unwrap_or("unknown").trim()
    );
    let cargo = ["cargo", "build", "--release", "--locked"];
    let packages = ["-p", "rangedb-server", "-p", "rangedb-loadgen"];
    process::run(
        "env",
        &[&[commit.as_str()], &cargo[..], &packages[..]].concat(),
    )?;
    let binary = process::release_binary("rangedb")?;
    let folder = Path::new(&binary).parent();
    text(&std::path::absolute(folder.unwrap_or(Path::new("."))).map_err(|e| e.to_string())?)
}

impl Facts {
    fn of(binaries: &str) -> Result<Facts, String> {
        let version = output(
            &format!("{binaries}/rangedb"),
            &["version", "--format", "json"],
        )?;
        let version: serde_json::Value =
            serde_json::from_str(&version).map_err(|error| error.to_string())?;
        let release = version["release"].as_str().ok_or("there is no release")?;
        let architecture = output("dpkg", &["--print-architecture"])?;
        let mut libc = 0;
        for package in &PACKAGES {
            let path = format!("{binaries}/{}", package.binary);
            let binary = fs::read(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
            libc = libc.max(libc_needed(&binary));
        }
        let of_commit = || output("git", &["log", "-1", "--format=%ct"]);
        let time = std::env::var("SOURCE_DATE_EPOCH").or_else(|_| of_commit());
        Ok(Facts {
            release: release.to_owned(),
            architecture: architecture.trim().to_owned(),
            libc: format!("2.{libc}"),
            time: time
                .unwrap_or_default()
                .trim()
                .parse()
                .unwrap_or(0_u64)
                .to_string(),
        })
    }
}

/// The newest minor version of glibc 2 whose symbols a binary names.
fn libc_needed(binary: &[u8]) -> u32 {
    const SYMBOLS: &[u8] = b"GLIBC_2.";
    let ends = binary
        .windows(SYMBOLS.len())
        .enumerate()
        .filter(|(_, window)| *window == SYMBOLS)
        .map(|(start, _)| start + SYMBOLS.len());
    let minor = |end: usize| {
        let digits = binary
            .get(end..)?
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let digits: Vec<u8> = digits.copied().collect();
        String::from_utf8(digits).ok()?.parse::<u32>().ok()
    };
    ends.filter_map(minor).max().unwrap_or(0)
}

impl Package {
    /// Installs the files into a tree.
    fn install(&self, binaries: &str, tree: &str) -> Outcome {
        let place = |from: &str, to: &str, mode: &str| {
            let to = format!("{tree}/{to}");
            process::run("install", &["-D", "-m", mode, from, &to])
        };
        let Package { name, binary, .. } = self;
        let program = format!("{binaries}/{binary}");
        place(&program, &format!("usr/bin/{binary}"), "755")?;
        let license = text(&root().join("LICENSE"))?;
        place(&license, &format!("usr/share/doc/{name}/copyright"), "644")?;
        for (from, to, mode) in self.files {
            place(&format!("{PACKAGING}/{from}"), to, mode)?;
        }
        for (from, to) in self.folders {
            let from = text(&root().join(PACKAGING).join(from))?;
            for file in files_under(Path::new(&from))? {
                let rest = file.strip_prefix(&from).unwrap_or(&file);
                place(&file, &format!("{to}{rest}"), "644")?;
            }
        }
        let manual = tempfile::tempdir().map_err(|error| error.to_string())?;
        process::run(&program, &["manual", &text(manual.path())?])?;
        for (folder, to) in MANUAL {
            for file in files_in(&manual.path().join(folder))? {
                let file_name = file.rsplit('/').next().unwrap_or(&file);
                let file_name = match to {
                    BASH_COMPLETIONS => binary,
                    _ => file_name,
                };
                place(&file, &format!("{to}/{file_name}"), "644")?;
            }
        }
        let pages = files_in(&Path::new(tree).join("usr/share/man/man1"))?;
        let mut pages = pages.iter().filter(|page| !page.ends_with(".gz"));
        pages.try_for_each(|page| process::run("gzip", &["-9nf", page]))
    }

    /// Makes the package of a tree, and gives the name of its file.
    fn build(&self, tree: &str, options: &Options, facts: &Facts) -> Result<String, String> {
        let architecture = &facts.architecture;
        let version = format!("{}-{}", facts.release, options.revision);
        let path = root().join(PACKAGING).join("debian").join(self.control);
        let control = fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?
            .replace("@VERSION@", &version)
            .replace("@ARCHITECTURE@", architecture)
            .replace("@LIBC@", &facts.libc);
        for script in self.scripts {
            let (from, to) = (
                format!("{PACKAGING}/debian/{script}"),
                format!("{tree}/DEBIAN/{script}"),
            );
            process::run("install", &["-D", "-m", "755", &from, &to])?;
        }
        let folder = format!("{tree}/DEBIAN");
        process::run("install", &["-d", "-m", "755", &folder])?;
        write(&format!("{folder}/control"), &control)?;
        let settings = self.files.iter().map(|(_, to, _)| to);
        let settings: String = settings
            .filter(|to| to.starts_with("etc/"))
            .map(|to| format!("/{to}\n"))
            .collect();
        if !settings.is_empty() {
            write(&format!("{folder}/conffiles"), &settings)?;
        }
        let file = format!("{}_{version}_{architecture}.deb", self.name);
        let time = format!("SOURCE_DATE_EPOCH={}", facts.time);
        let path = format!("{}/{file}", options.out);
        let compression = format!("-Z{}", options.compression);
        let words = [
            &time,
            "dpkg-deb",
            "--root-owner-group",
            &compression,
            "--build",
            tree,
            &path,
        ];
        process::run("env", &words)?;
        Ok(file)
    }
}

fn write_sums(out: &str, files: &[String]) -> Outcome {
    let paths: Vec<String> = files.iter().map(|file| format!("{out}/{file}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let sums = output("sha256sum", &paths)?;
    // They are checked beside the files.
    write(
        &format!("{out}/SHA256SUMS"),
        &sums.replace(&format!("{out}/"), ""),
    )
}

fn write(path: &str, content: &str) -> Outcome {
    fs::write(path, content).map_err(|error| format!("cannot write {path}: {error}"))
}

/// The paths of the files in a folder, sorted; none if there is no folder.
fn files_in(folder: &Path) -> Result<Vec<String>, String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let paths = entries.flatten().map(|entry| text(&entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

/// The paths of the files in a folder and in all folders within it, sorted.
fn files_under(folder: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries.flatten() {
        match entry.path() {
            path if path.is_dir() => paths.extend(files_under(&path)?),
            path => paths.push(text(&path)?),
        }
    }
    paths.sort();
    Ok(paths)
}

fn text(path: &Path) -> Result<String, String> {
    let text = path.to_str().ok_or("a folder's name is no UTF-8")?;
    Ok(text.to_owned())
}
