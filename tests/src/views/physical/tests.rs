//! Texts that a Linux kernel wrote, shortened, and the same with mistakes.

use super::*;

const ZONEINFO: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 48390
      nr_mapped    23646
  pages free     3840
        boost    0
        min      10
        low      13
        high     16
        spanned  4095
        present  3998
        managed  3840
        protection: (0, 3019, 24090, 24090, 24090)
      nr_free_pages 3840
      numa_hit     7
  pagesets
    cpu: 0
              count:    5
              high:     0
              batch:    1
  vm stats threshold: 4
    cpu: 1
              count:    6
              high:     0
              batch:    1
  vm stats threshold: 4
  node_unreclaimable:  0
  start_pfn:           1
Node 1, zone  Movable
  pages free     0
        protection: (0)
";

#[test]
fn zoneinfo_has_the_numbers_of_each_zone_and_each_cpu() {
    let zones = zoneinfo(ZONEINFO);
    assert_eq!(zones.len(), 2);
    let dma = &zones[0];
    assert_eq!(dma.name, ZoneName::new(0, "DMA"));
    assert_eq!(
        ["free", "min", "spanned", "nr_mapped", "numa_hit", "start_pfn"].map(|name| dma.number(name)),
        [3840, 10, 4095, 23646, 7, 1]
    );
    // The zone's own `high` is not a CPU's.
    assert_eq!((dma.number("high"), dma.pagesets[0]["high"]), (16, 0));
    assert_eq!((dma.pagesets[0]["count"], dma.pagesets[1]["count"]), (5, 6));
    assert_eq!(dma.protection, [0, 3019, 24090, 24090, 24090]);
    assert_eq!(zones[1].name, ZoneName::new(1, "Movable"));
}

#[test]
#[should_panic(expected = "unexpected line")]
fn a_zone_with_a_line_of_another_form_is_not_passed_over() {
    zoneinfo("Node 0, zone      DMA\n  pages free     many\n");
}

#[test]
fn buddyinfo_is_read_by_node_and_zone() {
    let text = "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n\
                Node 1, zone   Normal   1821   3369  11702   6100   7461   6406   3883   2353   1541    891   2769 \n";
    let zones = buddyinfo(text);
    assert_eq!(
        zones[0],
        (ZoneName::new(0, "DMA"), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3])
    );
    assert_eq!(pages_in(&zones[0].1), 256 + 512 + 3 * 1024);
    assert_eq!((&zones[1].0, zones[1].1[10]), (&ZoneName::new(1, "Normal"), 2769));
}

#[test]
fn pagetypeinfo_is_read_in_both_parts() {
    let text = "\
Page block order: 9
Pages per block:  512

Free pages count per migrate type at order       0      1      2      3      4      5      6      7      8      9     10 
Node    0, zone      DMA, type    Unmovable      0      0      0      0      0      0      0      0      1      0      0 
Node    0, zone      DMA, type      Movable      0      0      0      0      0      0      0      0      0      1      3 

Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic      Isolate 
Node 0, zone      DMA            1            7            0            0            0 
";
    let node_1 = text.replace("Node 0", "Node 1").replace("Node    0", "Node    1");
    let types = pagetypeinfo(&format!("{text}{node_1}"));
    assert_eq!((types.pageblock_order, types.free.len()), (9, 4));
    assert_eq!(types.blocks[1].0, ZoneName::new(1, "DMA"));
    let (zone, kind, chunks) = &types.free[1];
    assert_eq!(
        (zone, kind.as_str(), chunks[10]),
        (&ZoneName::new(0, "DMA"), "Movable", 3)
    );
    let (zone, blocks) = &types.blocks[0];
    assert_eq!(
        (zone, blocks["Movable"], blocks["Isolate"]),
        (&ZoneName::new(0, "DMA"), 7, 0)
    );
}

#[test]
fn slabinfo_is_read_field_by_field() {
    let text = "slabinfo - version: 2.1\n\
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n\
kmalloc-64          1200   1280     72   56    1 : tunables  120   60    8 : slabdata     22     23      0\n";
    let caches = slabinfo(text);
    let cache = &caches[0];
    assert_eq!(
        (cache.name.as_str(), cache.active_objects, cache.objects),
        ("kmalloc-64", 1200, 1280)
    );
    assert_eq!(
        (cache.object_size, cache.objects_per_slab, cache.pages_per_slab),
        (72, 56, 1)
    );
    assert_eq!(
        (cache.limit, cache.batch, cache.active_slabs, cache.slabs),
        (120, 60, 22, 23)
    );
}

#[test]
#[should_panic(expected = "another version")]
fn slabinfo_of_another_version_is_refused() {
    slabinfo("slabinfo - version: 1.1\n");
}

#[test]
fn vmallocinfo_is_read_with_its_words() {
    let text = "0x000000009fc09eed-0x000000008af34a72   20480 irq_init_percpu_irqstack+0xca/0x100 vmap\n\
                0x000000006d0e8ee8-0x00000000ee6f92a6   12288 bpf_prog_alloc_no_stats+0x39/0x230 pages=2 vmalloc N0=2\n";
    let areas = vmallocinfo(text);
    assert_eq!((areas[0].bytes, areas[0].range.0), (20480, 0x9fc0_9eed));
    assert_eq!(
        (
            areas[1].number("pages"),
            areas[1].number("N0"),
            areas[0].number("pages")
        ),
        (Some(2), Some(2), None)
    );
}
