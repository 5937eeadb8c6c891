//! Figures in Prometheus' text format: names, help, labels. Escaping and form are the library's.

use std::collections::BTreeMap;
use std::time::Duration;

use nbd_pool::Latencies;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::{Figures, Identity, is_used};
use crate::vm::{Fleece, Inventory};

/// Dirty bitmaps that are told of: more checkpoints than anybody keeps, and less than a scrape should not bear.
const MAX_BITMAPS: usize = 2048;

/// Longest word of the machine about itself, in characters. Disks and checkpoints have names that fit a file.
const MAX_WORD: usize = 256;

type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text.
///
/// # Errors
/// None that is known: memory is written to, and families without a metric are left out.
pub fn render(figures: &Figures, identity: &Identity) -> prometheus::Result<Vec<u8>> {
    let mut page = Page { identity, families: Vec::new() };
    requests(&mut page, figures);
    data(&mut page, figures);
    point(&mut page, figures);
    machine(&mut page, figures);
    page.families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    TextEncoder::new().encode(&page.families, &mut text)?;
    Ok(text)
}

fn requests(page: &mut Page<'_>, figures: &Figures) {
    page.family(
        "fuse_request_duration_seconds",
        MetricType::HISTOGRAM,
        "Requests of the kernel, from when they were taken up to their answer.",
    );
    for count in figures.requests.iter().filter(|count| is_used(&count.latency)) {
        page.histogram(&[("operation", count.operation.name())], &count.latency);
    }
    page.family("fuse_errors_total", MetricType::COUNTER, "Requests of the kernel that failed.");
    for count in figures.requests.iter().filter(|count| is_used(&count.latency)) {
        page.add(&[("operation", count.operation.name())], wide(count.errors));
    }
    page.counter("fuse_read_bytes_total", "Bytes that files which show disks were read for.", wide(figures.read_bytes));
}

fn data(page: &mut Page<'_>, figures: &Figures) {
    let nbd = &figures.nbd;
    page.family("nbd_request_duration_seconds", MetricType::HISTOGRAM, "Requests to NBD servers that were answered.");
    page.histogram(&[], &nbd.latency);
    page.counter("nbd_requests_total", "Requests sent to NBD servers, also those sent again.", wide(nbd.requests));
    page.counter("nbd_read_bytes_total", "Bytes read from NBD servers.", wide(nbd.bytes));
    page.gauge("nbd_requests_in_flight", "Requests with NBD servers now.", wide(nbd.in_flight));
    page.counter("nbd_reconnects_total", "NBD connections made in place of lost ones.", wide(nbd.reconnects));
    page.counter(
        "nbd_faults_total",
        "NBD connections ended for a breach of protocol or a time limit.",
        wide(nbd.faults),
    );

    let (cache, limit) = &figures.cache;
    page.gauge("cache_bytes", "Memory that blocks of disks take, also those on their way.", wide(cache.bytes));
    page.gauge("cache_limit_bytes", "Memory that they may take (cache=).", wide(*limit));
    page.counter("cache_hits_total", "Reads of disks that found all in memory.", wide(cache.hits));
    page.counter("cache_misses_total", "Reads of disks that had to wait.", wide(cache.misses));
    page.counter("cache_hit_bytes_total", "Bytes of reads that were in memory.", wide(cache.hit_bytes));
    page.counter("cache_miss_bytes_total", "Bytes of reads that were waited for.", wide(cache.missed_bytes));
    page.counter("cache_fetched_bytes_total", "Bytes asked of disks, also ahead of reads.", wide(cache.fetched));
    page.counter("readahead_bytes_total", "Bytes asked of disks ahead of reads.", wide(cache.ahead));

    let throttle = figures.throttle.as_ref();
    page.gauge("throttled", "Whether an option spares the guest's disks.", flag(throttle.is_some()));
    page.gauge("throttle_requests_in_flight", "Requests with the machine, as the throttle counts them.", {
        wide(throttle.map_or(0, |now| u64::try_from(now.in_flight).unwrap_or(u64::MAX)))
    });
    if let Some(window) = throttle.and_then(|now| now.window) {
        page.gauge("polite_window", "Reads at once that polite allows; low while the guest is busy.", window);
    }
}

fn point(page: &mut Page<'_>, figures: &Figures) {
    let (taken, failed) = figures.attempts;
    page.gauge("point_held", "Whether a point in time is held.", flag(figures.held.is_some()));
    page.counter("points_taken_total", "Points in time taken.", wide(taken));
    page.counter("points_failed_total", "Points in time that could not be taken.", wide(failed));
    page.family("points_ended_total", MetricType::COUNTER, "Points in time that ended, by reason.");
    for (reason, count) in &figures.ends {
        page.add(&[("reason", reason.word())], wide(*count));
    }
    if let Some((age, open)) = figures.held {
        page.gauge("point_age_seconds", "Age of the point in time that is held.", age.as_secs_f64());
        page.gauge("point_open_files", "Files open on it.", size(open));
    }
    page.gauge(
        "guest_file_systems",
        "File systems of the guest that were looked into at it.",
        size(figures.file_systems),
    );
    let readers = &figures.readers;
    page.gauge("guest_readers", "Processes that read the guest's disks now.", size(readers.running));
    page.counter("guest_readers_started_total", "Processes started to read the guest's disks.", wide(readers.started));
    page.counter("guest_readers_failed_total", "Of these, those that died or were ended.", wide(readers.failed));
    page.counter("guest_answers_total", "Questions about the guest's disks that they answered.", wide(readers.answers));
    if let Some(scratch) = &figures.scratch {
        page.gauge("scratch_used_bytes", "Old data of what the guest overwrote since.", wide(scratch.used));
        page.gauge("scratch_free_bytes", "Free space for more of it.", wide(scratch.free));
        if let Some(limit) = scratch.limit {
            page.gauge("scratch_limit_bytes", "What it may take (scratch_limit=).", wide(limit));
        }
    }
}

fn machine(page: &mut Page<'_>, figures: &Figures) {
    let machine = &figures.machine;
    let fleece = match machine.fleece {
        Fleece::Job => "job",
        Fleece::Backing => "backing",
        Fleece::Filter => "filter",
    };
    page.family("build_info", MetricType::GAUGE, "Always 1; the version of pullfs.");
    page.add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.family("machine_info", MetricType::GAUGE, "Always 1; what the machine is.");
    let [name, qemu] = [machine.name.as_deref().unwrap_or_default(), &machine.qemu]
        .map(|word| word.chars().take(MAX_WORD).collect::<String>());
    page.add(&[("machine", &name), ("qemu", &qemu), ("fleece", fleece)], 1.0);
    page.gauge("machine_up", "Whether the machine answered.", flag(figures.inventory.is_some()));
    let Some(inventory) = &figures.inventory else { return };
    page.family("disk_size_bytes", MetricType::GAUGE, "Virtual size of a disk.");
    for disk in &inventory.disks {
        page.add(&[("disk", &disk.name)], wide(disk.size));
    }
    let omitted = dirty(page, inventory);
    page.gauge("dirty_omitted", "Dirty bitmaps that are not told of, since there are too many.", wide(omitted));
}

/// How many were left out.
fn dirty(page: &mut Page<'_>, inventory: &Inventory) -> u64 {
    let all = inventory.disks.iter().flat_map(|disk| {
        disk.bitmaps.iter().map(move |(checkpoint, bitmap)| ((&**checkpoint, &*disk.name), bitmap.dirty_bytes))
    });
    let all: BTreeMap<_, _> = all.collect();
    page.family("dirty_bytes", MetricType::GAUGE, "What changed on a disk since a checkpoint, in whole granules.");
    for ((checkpoint, disk), bytes) in all.iter().take(MAX_BITMAPS) {
        page.add(&[("checkpoint", checkpoint), ("disk", disk)], wide(*bytes));
    }
    u64::try_from(all.len().saturating_sub(MAX_BITMAPS)).unwrap_or(u64::MAX)
}

/// Exact to 2^53, as all numbers of Prometheus.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn wide(number: u64) -> f64 {
    number as f64
}

fn size(number: usize) -> f64 {
    wide(u64::try_from(number).unwrap_or(u64::MAX))
}

fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Families in the making; the last one is added to.
struct Page<'a> {
    identity: &'a Identity,
    families: Vec<MetricFamily>,
}

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, MetricType::COUNTER, help);
        self.add(&[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, MetricType::GAUGE, help);
        self.add(&[], value);
    }

    fn family(&mut self, name: &str, kind: MetricType, help: &str) {
        // The encoder takes none that is empty.
        self.families.retain(|family| !family.get_metric().is_empty());
        let mut family = MetricFamily::default();
        family.set_name(format!("pullfs_{name}"));
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.families.push(family);
    }

    /// A value of the last family, whose labels are these beside the mount's own.
    fn add(&mut self, labels: Labels<'_>, value: f64) {
        let mut metric = Metric::from_label(self.labels(labels));
        let Some(family) = self.families.last_mut() else { return };
        if family.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        family.mut_metric().push(metric);
    }

    fn histogram(&mut self, labels: Labels<'_>, latencies: &Latencies) {
        let buckets = latencies.cumulative().map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(bound));
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(latencies.count());
        histogram.set_sample_sum(seconds(latencies.sum));
        let mut metric = Metric::from_label(self.labels(labels));
        metric.set_histogram(histogram);
        if let Some(family) = self.families.last_mut() {
            family.mut_metric().push(metric);
        }
    }

    fn labels(&self, more: Labels<'_>) -> Vec<LabelPair> {
        let own = [("source", self.identity.source.as_str()), ("mount", self.identity.mount.as_str())];
        let pair = |(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        own.iter().chain(more).map(pair).collect()
    }
}
