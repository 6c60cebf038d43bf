//! What a kernel says when something went wrong with it, among all that it says.

/// Beginnings and parts of such lines, as Linux 6.1 and 6.12 print them (`kernel/panic.c`, `kernel/watchdog.c`,
/// `kernel/rcu/tree_stall.h`, `kernel/hung_task.c`, `mm/page_alloc.c`, `mm/oom_kill.c`, `arch/x86/mm/fault.c`).
const COMPLAINTS: [&str; 16] = [
    "BUG:",
    "Bad page",
    "Call Trace",
    "INFO: rcu",
    "INFO: task",
    "Kernel panic",
    "Oops",
    "Out of memory",
    "WARNING:",
    "blocked for more than",
    "general protection fault",
    "invoked oom-killer",
    "lockup",
    "page allocation failure",
    "stalls on CPUs",
    "unable to handle",
];

/// Line of shell that prints what was in [`search`]'s log.
pub(super) const WHOLE: &str = "cat /tmp/log";

/// Line of shell that prints the lines with complaints of the kernel's log since the last time.
pub(super) fn search() -> String {
    let patterns = COMPLAINTS.map(|it| format!(" -e '{it}'")).concat();
    format!("dmesg -c >/tmp/log; grep -F{patterns} /tmp/log; true")
}

/// The lines of `log` in which the kernel complains, but for those that contain one of `expected`.
pub(super) fn complaints<'a>(log: &'a str, expected: &[&str]) -> Vec<&'a str> {
    let complains = |line: &&str| COMPLAINTS.iter().any(|it| line.contains(it));
    let lines = log.lines().filter(complains);
    lines
        .filter(|line| !expected.iter().any(|it| line.contains(it)))
        .collect()
}

/// Those of `expected` that are nowhere in `log`.
pub(super) fn missing<'a>(log: &str, expected: &[&'a str]) -> Vec<&'a str> {
    let missing = expected.iter().filter(|it| !log.contains(**it));
    missing.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_lockups_and_oopses_are_complaints() {
        let bad = [
            "[   63.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   63.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/0:1:10]",
            "[   63.0] INFO: task kworker/0:0:7 blocked for more than 120 seconds.",
            "[   63.0] ------------[ cut here ]------------",
            "[   63.0] WARNING: CPU: 0 PID: 7 at mm/page_alloc.c:5000 __alloc_pages+0x1/0x2",
            "[   63.0] sh invoked oom-killer: gfp_mask=0x140cca, order=0, oom_score_adj=0",
        ];
        let log = bad.join("\n");
        assert_eq!(complaints(&log, &[]).len(), bad.len() - 1);
        assert_eq!(complaints(&log, &["oom-killer"]).len(), bad.len() - 2);
        assert_eq!(missing(&log, &["oom-killer", "Call Trace"]), ["Call Trace"]);
    }

    #[test]
    fn what_a_kernel_says_in_passing_is_none() {
        let good = "[    0.1] rcu: Hierarchical RCU implementation.\n\
                    [    0.1] Command line: console=ttyS0 quiet panic=-1\n\
                    [    2.0] virtio_mem virtio0: start address: 0x100000000\n\
                    [    2.1] Built 1 zonelists, mobility grouping on.  Total pages: 112\n";
        assert_eq!(complaints(good, &[]), Vec::<&str>::new());
    }
}
