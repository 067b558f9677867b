import ControlProtocol
import Foundation
import Platform

/// The figures of protections as metrics: base units (seconds, bytes), `_total` on what only counts up.
public enum DomainMetrics {
    typealias Sample = MetricFamily.Sample
    typealias Label = MetricFamily.Label

    typealias Definition = MetricDefinition<DomainStatus>

    /// Every protection of a status has these labels.
    static func labels(_ domain: DomainStatus) -> [Label] {
        [Label("domain", domain.domain), Label("uuid", domain.uuid), Label("role", domain.role.rawValue), Label("peer", domain.peer),
         Label("engine", domain.engine)]
    }

    static let definitions: [Definition] = [
        Definition("protection_state", .gauge, "1 for the state that the protection is in, 0 for all others", samples: { domain in
            ProtectionState.allCases.map { Sample(domain.state == $0 ? 1 : 0, labels: [Label("state", $0.rawValue)]) }
        }),
        Definition("state_changed_timestamp_seconds", .gauge, "When the state began, as Unix time", value: { Timestamp.seconds($0.since) }),
        Definition("rpo_seconds", .gauge, "What would be lost if the primary's host failed now: age of the last committed epoch's capture",
                   value: { $0.rpoMs.map { $0 / 1000 } }),
        Definition("last_commit_age_seconds", .gauge, "Time since the shadow committed an epoch", value: { $0.lastCommitAgeMs.map { $0 / 1000 } }),
        Definition("lag_epochs", .gauge, "Captured epochs that the shadow has not committed", value: { Double($0.lagEpochs) }),
        Definition("lag_bytes", .gauge, "Bytes of captured epochs that wait in memory", value: { Double($0.lagBytes) }),
        Definition("interval_seconds", .gauge, "Time between two epochs, as used at the moment", value: { $0.intervalMs / 1000 }),
        Definition("configured_interval_seconds", .gauge, "Time between two epochs, as protect was told", value: { $0.configuredIntervalMs / 1000 }),
        Definition(primary: "drift_score", .gauge, "How far the two sides drift apart, an alarm from 1; none while the baseline is learned", value: { $0.driftScore }),
        Definition("pause_seconds", .summary, "How long an epoch stops the guest; quantiles over the last 1536 epochs", samples: { domain in
            guard domain.role == .primary, let counters = domain.counters, counters.pauses > 0 else { return [] }
            return [Sample(domain.pauseMsMedian / 1000, labels: [Label("quantile", "0.5")]),
                    Sample(domain.pauseMsP99 / 1000, labels: [Label("quantile", "0.99")]),
                    Sample(counters.pauseMsTotal / 1000, suffix: "_sum"), Sample(Double(counters.pauses), suffix: "_count")]
        }),
        Definition(primary: "epochs_captured_total", .counter, "Epochs captured", value: { domain in domain.counters.map { Double($0.epochsCaptured) } }),
        Definition("epochs_committed_total", .counter, "Number of the last epoch that the shadow committed; begins anew with each first copy",
                   value: { Double($0.committedEpoch) }),
        Definition(primary: "dirtied_bytes_total", .counter, "Memory pages that QEMU reported as changed, in bytes", value: { Double($0.bytesDirtied) }),
        Definition("transferred_bytes_total", .counter, "Bytes of epochs that crossed the network, sent by a primary, received by a shadow",
                   value: { Double($0.bytesSent) }),
        Definition(primary: "resent_bytes_total", .counter, "Those that crossed it again after the connection broke",
                   value: { domain in domain.counters.map { Double($0.bytesResent) } }),
        Definition("disk_transferred_bytes_total", .counter, "Those that are disk writes", value: { $0.diskBytesSent.map { Double($0) } }),
        Definition("disk_writes_total", .counter, "Disk writes of the guest that were captured", value: { $0.diskWrites.map { Double($0) } }),
        Definition("disk_ready", .gauge, "1: every write to this disk is part of an epoch", samples: { domain in
            (domain.disks ?? []).filter { $0.state != .shared }.map { Sample($0.state == .ready ? 1 : 0, labels: [Label("disk", $0.target)]) }
        }),
        Definition("first_copy_done_bytes", .gauge, "Bytes of the first copy that are over, while it is under way",
                   value: { $0.syncBytesDone.map { Double($0) } }),
        Definition("first_copy_size_bytes", .gauge, "Bytes of the first copy, while it is under way", value: { $0.syncBytesTotal.map { Double($0) } }),
        Definition("handovers_total", .counter, "Hand-overs of the guest that were completed", samples: { domain in
            guard let counters = domain.counters else { return [] }
            return [Sample(Double(counters.swaps), labels: [Label("kind", "swap")]), Sample(Double(counters.failovers), labels: [Label("kind", "failover")])]
        }),
        Definition(primary: "shadows_missing", .gauge, "Shadows that the domain's policy asks for and that do not follow; none without a policy",
                   value: { $0.missingShadows.map { Double($0) } }),
        Definition("failures_total", .counter, "Times that the shadow stopped following", value: { domain in domain.counters.map { Double($0.failures) } }),
        Definition("resyncs_total", .counter, "Times that a shadow was made anew and followed again",
                   value: { domain in domain.counters.map { Double($0.resyncs) } }),
        Definition("degraded_seconds_total", .counter, "Time without a shadow that follows, after there had been one",
                   value: { domain in domain.counters.map { $0.degradedSeconds } }),
    ]

    /// Of all protections in `status`, and of their shadows.
    public static func families(_ status: StatusReport) -> [MetricFamily] {
        let domains = status.domains.map { (labels: labels($0), subject: $0) }
        return ShadowMetrics.families(status) + definitions.map { $0.family(domains) }
    }
}

extension MetricDefinition<DomainStatus> {
    /// For those that only the side with the guest has.
    fileprivate init(primary name: String, _ kind: MetricFamily.Kind, _ help: String, value: @escaping @Sendable (DomainStatus) -> Double?) {
        self.init(name, kind, help, value: { $0.role == .primary ? value($0) : nil })
    }
}
