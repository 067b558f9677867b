import ControlProtocol

/// What sensors and events together say of a host.
enum Assessment {
    /// How long an event of a sensor that cannot be read counts, in seconds: nobody says when it is over.
    static let eventSeconds = 86400.0

    /// The state, and why it is not nominal, worst first.
    static func judge(sensors: [SensorReading], events: [HardwareEvent], now: Double) -> (state: HealthState, reasons: [String]) {
        let bad = sensors.filter { $0.state == .warning || $0.state == .critical }.map { (state: $0.state, text: reason($0)) }
        let open = open(events, sensors: sensors, now: now).map { (state: $0.severity, text: "\($0.sensor): \($0.text) (at \($0.time))") }
        let all = bad + open
        let reasons = all.filter { $0.state == .critical } + all.filter { $0.state != .critical }
        // Nothing was read: nothing is known.
        let calm: [HealthState] = sensors.contains { $0.state == .nominal } ? [.nominal] : []
        return (HealthState.worst(all.map(\.state) + calm), reasons.map(\.text))
    }

    /// Events that are not over. A sensor that can be read says itself how it is; memory errors often come from sensors that cannot.
    private static func open(_ events: [HardwareEvent], sensors: [SensorReading], now: Double) -> [HardwareEvent] {
        let readable = Set(sensors.map(\.name))
        var open: [HardwareEvent] = []
        for event in events where !readable.contains(event.sensor) && now - event.seconds < eventSeconds {
            open.removeAll { $0.sensor == event.sensor && $0.text == event.text }
            if event.isTrouble { open.append(event) }
        }
        return open
    }

    static func reason(_ sensor: SensorReading) -> String {
        let value = sensor.value.map { " (\(figure($0))\(sensor.unit.map { " \($0)" } ?? ""))" } ?? ""
        return "\(sensor.name): \(sensor.reports.isEmpty ? sensor.state.rawValue : sensor.reports.joined(separator: ", "))\(value)"
    }

    /// Two decimals at most: what a sensor's conversion leaves behind them means nothing.
    static func figure(_ value: Double) -> String {
        let rounded = (value * 100).rounded() / 100
        guard rounded == rounded.rounded(), abs(rounded) < 1e15 else { return "\(rounded)" }
        return "\(Int(rounded))"
    }
}
