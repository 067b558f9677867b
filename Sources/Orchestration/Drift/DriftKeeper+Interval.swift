import ControlProtocol
import Foundation
import Platform

/// The interval between epochs, by `IntervalLaw`.
extension DriftKeeper {
    /// Below this share a change is not worth a question to QEMU.
    private static let leastChange = 0.05
    /// A periodic shadow whose last epoch is older than this many intervals lags.
    private static let mostIntervals = 2.5

    func steer(_ key: Key, _ protection: PrimaryProtection, _ status: DomainStatus, _ trouble: HardwareTrouble) {
        guard status.state == .protected, status.epoch > 0 else { return }
        let settings = environment.configuration.drift
        let bounds = IntervalLaw.Bounds(configuredMs: status.configuredIntervalMs, isPeriodic: protection.isPeriodic,
                                        least: protection.isPeriodic ? settings.periodicIntervalMinMs : settings.intervalMinMs)
        let ordered = protection.orderedIntervalMs
        let change = watches.change { watches -> (before: IntervalLaw.Mode, law: IntervalLaw, watch: DriftWatch)? in
            guard var watch = watches[key] else { return nil }
            watch.notePause(totalMilliseconds: status.counters?.pauseMsTotal ?? 0, at: .now)
            var law = watch.law.flatMap { $0.bounds == bounds ? $0 : nil } ?? IntervalLaw(bounds)
            let before = law.mode
            _ = law.step(Self.look(watch, protection, status, trouble, ordered))
            watch.law = law
            watches[key] = watch
            return (before, law, watch)
        }
        guard let change else { return }
        apply(change.law, protection, ordered)
        if change.before != change.law.mode { tell(change.law, change.watch) }
    }

    private static func look(_ watch: DriftWatch, _ protection: PrimaryProtection, _ status: DomainStatus, _ trouble: HardwareTrouble, _ ordered: Double) -> IntervalLaw.Look {
        // More epochs do no good to a shadow that is itself in trouble.
        let score = watch.verdict?.side == .shadow ? 0 : watch.score ?? 0
        let isHardware = trouble.pressure > score
        let cause = isHardware ? trouble.critical ?? trouble.warning ?? "" : "drift score \(String(format: "%.2f", score))"
        let isLagging = protection.isPeriodic ? (status.rpoMs ?? 0) > mostIntervals * ordered : status.intervalMs > ordered * 1.5
        return IntervalLaw.Look(now: steadyNow, pressure: max(score, trouble.pressure), cause: cause, pauseShare: watch.pauseShare, isLagging: isLagging)
    }

    private func apply(_ law: IntervalLaw, _ protection: PrimaryProtection, _ ordered: Double) {
        let isOther = abs(law.intervalMs - ordered) >= max(0.5, ordered * Self.leastChange) || law.mode == .configured
        // The same again as well: an order that met a suspended guest had no effect.
        protection.setInterval(isOther ? law.intervalMs : ordered, reason: law.reason)
    }

    private func tell(_ law: IntervalLaw, _ watch: DriftWatch) {
        // On its way back nothing happens that was not to be expected.
        guard law.mode != .returning else { return }
        Log.info("\(watch.domain): the interval is \(Int(law.intervalMs.rounded())) ms: \(law.reason)")
        record("interval", watch, "The interval between epochs is \(Int(law.intervalMs.rounded())) ms: \(law.reason)",
               ["interval_ms": "\(Int(law.intervalMs.rounded()))", "mode": law.mode.rawValue])
    }
}
