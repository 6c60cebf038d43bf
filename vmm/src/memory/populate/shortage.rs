//! How much memory the host could give without killing anybody: what the kernel estimates for the whole machine
//! (`MemAvailable`, proc(5)), and what the control groups of this process leave (`memory.max`, Linux cgroup-v2.rst).

use std::fs;
use std::path::{Path, PathBuf};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Bytes that could be had now; `None` if the host does not say.
pub(in crate::memory) fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|meminfo| field_kib(&meminfo, "MemAvailable:"));
    let groups = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|groups| own_group(&groups));
    machine
        .into_iter()
        .chain(groups.as_deref().and_then(room_in_groups))
        .min()
}

/// The least that the group and the groups around it leave.
fn room_in_groups(own: &Path) -> Option<u64> {
    own.ancestors()
        .take_while(|group| group.starts_with(CGROUP_ROOT))
        .filter_map(|group| {
            let read = |file: &str| fs::read_to_string(group.join(file)).ok();
            room(
                &read("memory.max")?,
                &read("memory.current")?,
                &read("memory.stat")?,
            )
        })
        .min()
}

/// The folder of this process's group, from `/proc/self/cgroup` (`0::/path`).
fn own_group(groups: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(CGROUP_ROOT).join(path))
}

/// What a group's limit leaves, with the page cache that it could drop; `None` without a limit.
fn room(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let cache: u64 = ["inactive_file", "active_file"]
        .iter()
        .filter_map(|name| {
            let mut fields = stat.lines().filter_map(|line| line.split_once(' '));
            fields.find(|(field, _)| field == name)?.1.parse::<u64>().ok()
        })
        .sum();
    Some(max.saturating_sub(current.saturating_sub(cache)))
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_with_a_limit_leaves_what_is_not_used_and_the_cache_it_could_drop() {
        let stat = "anon 700\nfile 300\nactive_file 100\ninactive_file 150\n";
        assert_eq!(room("2000\n", "1200\n", stat), Some(1050));
        assert_eq!(room("1000\n", "1200\n", "anon 1200\n"), Some(0));
        assert_eq!(room("max\n", "1200\n", stat), None);
    }

    #[test]
    fn the_group_is_that_of_the_unified_hierarchy() {
        assert_eq!(
            own_group("1:name=systemd:/x\n0::/user.slice/a\n"),
            Some("/sys/fs/cgroup/user.slice/a".into())
        );
        assert_eq!(own_group("1:memory:/x\n"), None);
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        let available = available_bytes().expect("Linux has said so since 3.14");
        assert!(available > 0 && available < 1 << 50, "{available}");
        assert_eq!(
            field_kib("MemFree: 1 kB\nMemAvailable:  12 kB\n", "MemAvailable:"),
            Some(12 << 10)
        );
    }
}
