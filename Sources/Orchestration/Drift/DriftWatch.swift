import ControlProtocol
import Drift
import Foundation
import Platform
import Telemetry

/// One domain and one of its shadows' hosts: what is learned of the pair, and what follows from it.
struct DriftWatch {
    /// What goes to disk. Whoever restores it sees to it that domain and hosts are the same.
    struct Saved: Codable {
        static let version = 1
        var version = Self.version
        var uuid: String
        var peer: String
        var stepSeconds: Int
        /// CPUs, memory, disks: what was learned with others is worth nothing.
        var shape: String?
        var samples: Int
        /// Seconds since 1970.
        var since: Double
        var analyzer: DriftAnalyzer
    }

    var domain: String
    var saved: Saved
    /// Of this host at the last look, for what its hardware says.
    var hostValues: [String: Double] = [:]
    var law: IntervalLaw?
    var swap = WarmSwapLaw()
    var decision = WarmSwapLaw.Decision.stay
    /// The last thing that was told of a hand-over; a repetition is no news.
    var told: String?
    /// Since when an alarm is told of.
    var isAlarmTold = false
    var isSwapping = false
    /// The word of the domain's policy; nil: it has none.
    var policy: DomainPolicy.DriftAction?
    var policyAt: MonotonicTime?
    /// What the shadow's host had against it when it was asked last.
    var peerObstacle: (text: String, at: MonotonicTime)?
    var retryAt: Double?
    var failures = 0
    var savedAt = MonotonicTime.now
    var shapeAt: MonotonicTime?
    private var lastPause: (milliseconds: Double, at: MonotonicTime)?
    private(set) var pauseShare = 0.0

    init(domain: String, _ saved: Saved) {
        (self.domain, self.saved) = (domain, saved)
    }

    static func fresh(uuid: String, peer: String, stepSeconds: Int, shape: String?, now: Double) -> Saved {
        var settings = DriftConfiguration()
        // Who looks more often than as shipped wants to know sooner, and puts up with more noise.
        if stepSeconds < 5 { settings.blockSeconds = Double(stepSeconds) }
        return Saved(uuid: uuid, peer: peer, stepSeconds: stepSeconds, shape: shape, samples: 0, since: now, analyzer: DriftAnalyzer(step: Double(stepSeconds), configuration: settings))
    }

    var verdict: DriftVerdict? { saved.analyzer.verdict }
    /// Nil while the baseline is learned, and when nothing was measured for so long that the verdict is about another time.
    var score: Double? {
        guard let heardAt, MonotonicTime.now.milliseconds(since: heardAt) < max(Self.longestSilenceMs, 5000 * Double(saved.stepSeconds)) else { return nil }
        return verdict.flatMap { $0.isLearning ? nil : $0.score }
    }

    private static let longestSilenceMs = 60_000.0
    private var heardAt: MonotonicTime?

    mutating func take(_ pair: PairSample) {
        domain = pair.domain
        saved.samples += 1
        hostValues = pair.primary.values.filter { $0.key.hasPrefix("host_") }
        heardAt = .now
        let time = Double(pair.primary.time) / 1000
        // A clock that was set back: until it was as late again nothing would be judged, and the last verdict would stand.
        if let last = saved.analyzer.lastTime, time <= last { saved.analyzer.clockWasSet(by: time - last - Double(saved.stepSeconds)) }
        saved.analyzer.add(time: time, primary: judged(pair.primary.values), shadow: judged(pair.shadow?.values ?? [:]))
    }

    /// What another interval than the configured one changes by itself. Judged all the same, doubt would shorten the interval, and that would be more doubt.
    static let ofEpochs: Set = ["commits_per_second", "commit_age_ms", "replication_bytes_per_second", "replication_disk_bytes_per_second", "dirty_bytes_per_second",
                                "rpo_ms", "epoch_pause_ms", "epoch_pause_p99_ms", "epoch_interval_ms", "lag_epochs_count", "lag_bytes"]

    private func judged(_ values: [String: Double]) -> [String: Double] {
        guard let law, law.mode != .configured else { return values }
        return values.filter { !Self.ofEpochs.contains($0.key) }
    }

    /// The domain, or what it runs on, is another one than the baseline was learned of.
    mutating func begin(shape: String?, now: Double) {
        saved = Self.fresh(uuid: saved.uuid, peer: saved.peer, stepSeconds: saved.stepSeconds, shape: shape, now: now)
    }

    /// The share of time that epochs stop the guest, over the last few seconds.
    mutating func notePause(totalMilliseconds total: Double, at now: MonotonicTime) {
        defer { lastPause = (total, now) }
        guard let last = lastPause, total >= last.milliseconds else { return pauseShare = 0 }
        let passed = now.milliseconds(since: last.at)
        guard passed > 0 else { return }
        // Over some ten looks: one long pause is no reason to change anything.
        pauseShare += (min(1, (total - last.milliseconds) / passed) - pauseShare) * 0.1
    }

    func report(onDrift: String, intervalMs: Double, intervalReason: String) -> DomainDrift {
        func stamp(_ seconds: Double) -> String { Timestamp.format(seconds: Int(seconds), milliseconds: Int(seconds * 1000) % 1000) }
        func rounded(_ value: Double) -> Double { (value * 10_000).rounded() / 10_000 }
        let judged = score == nil ? nil : verdict
        let contributions = (judged?.contributions ?? []).map {
            DomainDrift.Contribution(kpi: $0.kpi, score: rounded($0.score), side: $0.side?.rawValue, pattern: $0.pattern.rawValue, since: stamp($0.since),
                                     confidence: rounded($0.confidence), relativeChange: rounded($0.relativeChange))
        }
        return DomainDrift(domain: domain, uuid: saved.uuid, peer: saved.peer, isLearning: score == nil, samples: saved.samples, baselineSince: stamp(saved.since),
                           lastSample: verdict.map { stamp($0.time) }, score: score.map(rounded), side: judged?.side?.rawValue,
                           alarmSince: swap.alarmSince.map(stamp), contributions: contributions, hardware: judged?.hardware.map(\.sensor) ?? [],
                           explanation: judged?.explanation ?? ["Learning the baseline: nothing is judged yet"], onDrift: onDrift, decision: decision.text,
                           intervalMs: intervalMs, intervalReason: intervalReason)
    }
}

extension DomainDefinition {
    /// What a baseline depends on: a guest with other CPUs, memory or disks behaves otherwise.
    var shape: String {
        let disks = values("devices/disk[@device='disk' or not(@device)]/target/@dev").sorted().joined(separator: ",")
        return "\(virtualCPUs) CPUs, \(memoryBytes >> 10) KiB, disks \(disks)"
    }
}
