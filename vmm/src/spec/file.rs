//! VM files: the options of `ballast run` written down, in TOML, or in JSON when the file is called `*.json`.
//!
//! Relative paths in a file are relative to the folder that holds it, so that a file and its kernel can travel together.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::options::VmOptions;

/// A VM file that cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("--config {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not TOML, has a key that is no option, or a value of the wrong kind.
    #[error("--config {path:?}{line}: {message}")]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, as `:3`, where it is known.
        line: String,
        /// What is wrong, with the key's name.
        message: String,
    },
}

/// How a VM file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Toml,
    Json,
}

impl VmOptions {
    /// Reads a VM file.
    ///
    /// # Errors
    /// The file cannot be read, or it is not one. Values are checked later, together with those of the command line.
    pub fn from_file(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path).map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let is_json = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let format = if is_json { Format::Json } else { Format::Toml };
        let options = parse(&text, format).map_err(|(line, message)| FileError::Content {
            path: path.to_owned(),
            line: line.map(|line| format!(":{line}")).unwrap_or_default(),
            message,
        })?;
        Ok(options.relative_to(path.parent().unwrap_or(Path::new(""))))
    }

    /// The same options with relative paths taken from `folder`.
    fn relative_to(mut self, folder: &Path) -> Self {
        // Joining would turn an empty path into the folder, and hide that it is empty.
        let join = |path: PathBuf| {
            if path.as_os_str().is_empty() {
                path
            } else {
                folder.join(path)
            }
        };
        self.kernel = self.kernel.map(join);
        self.initrd = self.initrd.map(join);
        self.serial = self.serial.map(|serial| match serial.strip_prefix("file=") {
            // Both parts came as UTF-8 or are displayed as it: a folder that is not cannot be named in this option.
            Some(file) if !file.is_empty() => format!("file={}", folder.join(file).display()),
            _ => serial,
        });
        self.hvc = self.hvc.map(|hvc| path_part_from(folder, &hvc));
        self.vsock = self.vsock.map(|vsock| path_part_from(folder, &vsock));
        // A disk begins with its path.
        let disk = |disk: String| match disk.as_str() {
            text if text.is_empty() || text.starts_with(',') => disk,
            text => folder.join(text).display().to_string(),
        };
        self.disk = self.disk.into_iter().map(disk).collect();
        for port in &mut self.console_port {
            *port = path_part_from(folder, port);
        }
        self
    }
}

/// A list of parts whose `path=` or `file=`, if it has a relative one, is taken from `folder`.
fn path_part_from(folder: &Path, list: &str) -> String {
    let part = |part: &str| match part.split_once('=') {
        Some((name @ ("path" | "file"), path)) if !path.is_empty() => {
            format!("{name}={}", folder.join(path).display())
        }
        _ => part.to_owned(),
    };
    list.split(',').map(part).collect::<Vec<_>>().join(",")
}

/// The options in a file's text, or the line (from 1) and what is wrong there.
fn parse(text: &str, format: Format) -> Result<VmOptions, (Option<usize>, String)> {
    match format {
        Format::Toml => toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| text[..span.start].matches('\n').count() + 1);
            (line, one_line(error.message()))
        }),
        Format::Json => {
            serde_json::from_str(text).map_err(|error| (Some(error.line()), one_line(&error.to_string())))
        }
    }
}

/// A message of a parser with its line breaks taken out.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn every_key_is_documented() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/vm");
        let readme = std::fs::read_to_string(folder.join("README.md")).expect("the samples have a README");
        // Serde names all keys when it meets one that it does not know.
        let (_, message) = parse(r#"{"?": 1}"#, Format::Json).expect_err("no key");
        let keys: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        assert!(keys.len() > 10, "{message}");
        for key in keys {
            assert!(
                readme.contains(&format!("| `{key}` |")),
                "the README explains {key}"
            );
        }
    }

    /// What the parser says of a TOML text that is no VM file.
    fn refusal(text: &str) -> (Option<usize>, String) {
        parse(text, Format::Toml).expect_err("this is no VM file")
    }

    #[test]
    fn a_file_has_the_keys_of_the_command_line() {
        let toml = r#"
            name = "a"
            memory = "1G"          # text or a number of bytes
            hotplug = 4294967296
            block-size = "2M"
            cpus = 2
            node = ["memory=512M", "cpus=1"]
            program = ["hog fill=70%", "hog size=64M"]
            on-violation = "pause"
            serial = "stdout"
            cmdline = "quiet"
        "#;
        let json = r#"{"name": "a", "memory": "1G", "hotplug": 4294967296, "block-size": "2M", "cpus": 2,
            "node": ["memory=512M", "cpus=1"],
            "program": ["hog fill=70%", "hog size=64M"], "on-violation": "pause", "serial": "stdout",
            "cmdline": "quiet"}"#;
        let options = parse(toml, Format::Toml).expect("valid");
        assert_eq!(options, parse(json, Format::Json).expect("valid"));
        assert_eq!(options.hotplug, ["4294967296"]);
        let list = parse("hotplug = [\"4G,node=1\", 1073741824]", Format::Toml).expect("valid");
        assert_eq!(list.hotplug, ["4G,node=1", "1073741824"]);
        assert_eq!(options.cpus.as_deref(), Some("2"));
        assert_eq!((options.program.len(), options.node.len()), (2, 2));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_line() {
        let (line, message) = refusal("name = \"a\"\nmemmory = \"1G\"\n");
        assert_eq!(line, Some(2));
        assert!(message.contains("memmory"), "{message}");
        let (_, message) = parse(r#"{"memmory": 1}"#, Format::Json).expect_err("unknown key");
        assert!(message.contains("memmory"), "{message}");
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused_in_one_line() {
        for text in [
            "memory = 1.5",
            "memory = true",
            "program = \"hog\"",
            "name = 3",
            "x",
        ] {
            let (line, message) = refusal(text);
            assert_eq!(line, Some(1), "{text}");
            assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        }
    }

    #[test]
    fn the_same_key_twice_is_refused() {
        assert!(refusal("name = \"a\"\nname = \"b\"").1.contains("duplicate key"));
        let twice = parse(r#"{"name": "a", "name": "b"}"#, Format::Json).expect_err("twice");
        assert!(twice.1.contains("duplicate field"), "{}", twice.1);
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let options = VmOptions {
            kernel: Some("k".into()),
            initrd: Some("/abs/i".into()),
            serial: Some("file=out".into()),
            vsock: Some("cid=3,path=v".into()),
            disk: vec![
                "d.img,readonly".into(),
                "/dev/sdb,direct".into(),
                ",readonly".into(),
            ],
            hvc: Some("file=h".into()),
            console_port: vec!["name=a,file=f".into()],
            ..VmOptions::default()
        };
        let options = options.relative_to(Path::new("/vms"));
        assert_eq!(options.kernel.as_deref(), Some(Path::new("/vms/k")));
        assert_eq!(options.initrd.as_deref(), Some(Path::new("/abs/i")));
        assert_eq!(options.serial.as_deref(), Some("file=/vms/out"));
        assert_eq!(options.vsock.as_deref(), Some("cid=3,path=/vms/v"));
        assert_eq!(
            options.disk,
            ["/vms/d.img,readonly", "/dev/sdb,direct", ",readonly"]
        );
        assert_eq!(options.hvc.as_deref(), Some("file=/vms/h"));
        assert_eq!(options.console_port, ["name=a,file=/vms/f"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = VmOptions::from_file(Path::new("/nonexistent/vm.toml")).expect_err("not there");
        let text = crate::cli::chain(&error);
        assert!(
            text.starts_with("--config \"/nonexistent/vm.toml\": No such file"),
            "{text}"
        );
    }

    #[test]
    fn every_sample_file_is_a_valid_vm() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/vm");
        let readme = std::fs::read_to_string(folder.join("README.md")).expect("the samples have a README");
        let mut samples = BTreeSet::new();
        for file in std::fs::read_dir(folder).expect("the samples are there") {
            let path = file.expect("readable").path();
            // Images that the samples want may lie beside them.
            let is_sample = |extension: &OsStr| extension == "toml" || extension == "json";
            if !path.extension().is_some_and(is_sample) {
                continue;
            }
            let options = VmOptions::from_file(&path).unwrap_or_else(|error| panic!("{error}"));
            let spec = options.validate(&"default".parse().expect("a name"));
            let spec = spec.unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let plain = |part: Option<&OsStr>| part.and_then(OsStr::to_str).expect("plain names").to_owned();
            let (stem, file) = (plain(path.file_stem()), plain(path.file_name()));
            assert_eq!(spec.name.as_str(), stem, "a sample is called like its VM");
            assert!(
                readme.contains(&format!("| `{file}` |")),
                "the README explains {file}"
            );
            samples.insert(plain(path.extension()));
        }
        assert_eq!(
            Vec::from_iter(samples),
            ["json", "toml"],
            "there are samples of both kinds"
        );
    }
}
