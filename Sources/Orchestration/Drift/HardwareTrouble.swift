import ControlProtocol
import Foundation

/// What this host's hardware says of its own future.
struct HardwareTrouble: Equatable, Sendable {
    /// Reason enough to leave it; nil: none.
    var critical: String?
    /// Reason for doubt.
    var warning: String?

    /// An event that says nothing of its end counts for so long, in seconds.
    static let eventSeconds = 3600.0
    /// Whatever the BMC calls their severity: the disk will fail, memory has failed.
    private static let ends: Set<HardwareEventKind> = [.drivePredictiveFailure, .uncorrectableECC]

    /// What a warning and a critical state count for, beside a drift score.
    static let warningPressure = 0.7, criticalPressure = 1.0

    var pressure: Double { critical != nil ? Self.criticalPressure : warning != nil ? Self.warningPressure : 0 }

    init(critical: String? = nil, warning: String? = nil) {
        (self.critical, self.warning) = (critical, warning)
    }

    /// - Parameters:
    ///   - report: of the BMC; nil: none is watched.
    ///   - kpis: of this host at the last look.
    ///   - since: events before that moment, in seconds, were seen by an administrator, who trusts the host again.
    init(_ report: HealthReport?, kpis: [String: Double], now: Double, since: Double) {
        var critical: [String] = [], warnings: [String] = []
        if let report, report.bmc != nil {
            for sensor in report.sensors {
                if sensor.state == .critical { critical.append(Self.text(sensor)) }
                if sensor.state == .warning { warnings.append(Self.text(sensor)) }
            }
            for event in Self.open(report, now: now, since: since) {
                let text = "\(event.sensor): \(event.text)"
                if event.severity == .critical || Self.ends.contains(event.kind) { critical.append(text) } else { warnings.append(text) }
            }
        }
        if let disks = kpis["host_disk_smart_failed_count"], disks > 0 { critical.append("a disk predicts its failure (SMART)") }
        if let errors = kpis["host_ecc_uncorrected_per_second"], errors > 0 { critical.append("the memory has uncorrectable errors") }
        if let throttles = kpis["host_thermal_throttles_per_second"], throttles > 0 { warnings.append("the CPU is throttled because of its temperature") }
        self.critical = critical.first
        warning = warnings.first
    }

    /// Young, and not over. A sensor that can be read says itself how it is, but not that it predicts an end.
    private static func open(_ report: HealthReport, now: Double, since: Double) -> [HardwareEvent] {
        let nominal = Set(report.sensors.filter { $0.state == .nominal }.map(\.name)), readable = Set(report.sensors.map(\.name))
        var open: [HardwareEvent] = []
        for event in report.events where event.seconds > since && now - event.seconds < eventSeconds {
            open.removeAll { $0.sensor == event.sensor && $0.text == event.text }
            guard event.isTrouble, !nominal.contains(event.sensor) else { continue }
            if !readable.contains(event.sensor) || ends.contains(event.kind) { open.append(event) }
        }
        return open
    }

    private static func text(_ sensor: SensorReading) -> String {
        let value = sensor.value.map { " (\(($0 * 100).rounded() / 100)\(sensor.unit.map { " \($0)" } ?? ""))" } ?? ""
        return "\(sensor.name): \(sensor.reports.isEmpty ? sensor.state.rawValue : sensor.reports.joined(separator: ", "))\(value)"
    }
}
