import ControlProtocol
import Foundation

/// What `health` says for people.
struct HealthText {
    var colour = false
    /// Seconds; older events are left out. Nil: all are shown.
    var eventsSince: Double?

    func text(_ report: HealthReport) -> String {
        [head(report), sensors(report.sensors), events(report.events)].filter { !$0.isEmpty }.joined(separator: "\n")
    }

    private func head(_ report: HealthReport) -> String {
        var rows = [("Host", report.host.printable), ("State", paint(report.state))]
        rows += report.reasons.map { ("Reason", $0.printable) }
        if let bmc = report.bmc {
            let last = bmc.lastReading.map { ", last read at \($0.printable)" + (bmc.readingMs.map { " in \(Quantity.duration(milliseconds: $0))" } ?? "") } ?? ""
            let since = bmc.since.map { " since \($0.printable)" } ?? ""
            let state = bmc.isReachable ? "reachable\(since)" : bmc.since == nil ? "not read yet" : "not reachable\(since)"
            rows.append(("BMC", "\(bmc.address.printable), \(state)\(last)"))
        }
        return rows.map { "\($0.0):".padding(toLength: 9, withPad: " ", startingAt: 0) + $0.1 + "\n" }.joined()
    }

    private func sensors(_ sensors: [SensorReading]) -> String {
        guard !sensors.isEmpty else { return "" }
        var table = TextTable(columns: [.init("SENSOR"), .init("TYPE"), .init("READING", .right), .init("STATE"), .init("REPORT")])
        for sensor in sensors {
            let reading = sensor.value.map { String(format: "%.5g", $0) + (sensor.unit.map { " \($0.printable)" } ?? "") } ?? "-"
            table.add([.init(sensor.name.printable), .init(sensor.type.printable), .init(reading), .init(sensor.state.rawValue, style(sensor.state)),
                       .init(sensor.reports.map(\.printable).joined(separator: ", "))])
        }
        return table.render(colour: colour)
    }

    private func events(_ events: [HardwareEvent]) -> String {
        let shown = events.filter { event in eventsSince.map { event.seconds >= $0 } ?? true }
        guard !shown.isEmpty else { return "" }
        var table = TextTable(columns: [.init("TIME"), .init("SENSOR"), .init("KIND"), .init("SEVERITY"), .init("EVENT")])
        for event in shown {
            table.add([.init(event.time.printable), .init(event.sensor.printable), .init(event.kind.rawValue), .init(event.severity.rawValue, style(event.severity)),
                       .init(event.text.printable + (event.isAsserted ? "" : " (over)"))])
        }
        return table.render(colour: colour)
    }

    private func style(_ state: HealthState) -> TextStyle {
        switch state {
        case .nominal: .good
        case .warning: .caution
        case .critical: .bad
        case .unknown: .plain
        }
    }

    private func paint(_ state: HealthState) -> String { colour ? style(state).apply(state.rawValue) : state.rawValue }
}
