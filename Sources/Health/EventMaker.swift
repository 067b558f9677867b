import ControlProtocol
import Foundation
import Platform

/// Makes events of what two readings in a row show.
struct EventMaker {
    let host: String
    /// Wall-clock seconds since 1970 of the reading before and of this one.
    var before: Double?
    var now: Double

    /// A BMC's clock is set by hand or by nobody; a record that is new lies between the two readings. So much may it be off and is still believed.
    static let clockToleranceSeconds = 60.0
    /// A time below this counts from the BMC's start, as the standard has it (IPMI 2.0, 37.1).
    static let firstRealTime = 0x2000_0000

    /// Of a record that was not there at the reading before.
    func event(new record: LogRecord) -> HardwareEvent {
        let earliest = (before ?? now) - Self.clockToleranceSeconds, latest = now + Self.clockToleranceSeconds
        let told = record.time.map(Double.init) ?? 0
        return event(record, seconds: (earliest...latest).contains(told) ? told : now)
    }

    /// Of one that was there before anybody looked; nil when its time is unknown.
    func event(old record: LogRecord) -> HardwareEvent? {
        guard let time = record.time, time >= Self.firstRealTime, time != .max else { return nil }
        return event(record, seconds: min(Double(time), now))
    }

    private func event(_ record: LogRecord, seconds: Double) -> HardwareEvent {
        HardwareEvent(time: Self.timestamp(seconds), seconds: seconds, host: host, sensor: record.sensor.isEmpty ? "-" : record.sensor,
                      kind: Classification.kind(type: record.sensorType, offsetType: record.offsetType, offset: record.offset),
                      severity: record.state, isAsserted: record.isAsserted, text: record.text.isEmpty ? "no details" : record.text,
                      source: .log, recordID: record.id)
    }

    /// Sensors that changed their state without a word in the log: that may be full, or the BMC logs no such thing.
    func changes(from old: [SensorRecord], to new: [SensorRecord], logged: [LogRecord]) -> [HardwareEvent] {
        let named = Set(logged.map(\.sensor))
        let before = Dictionary(old.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
        return new.compactMap { sensor in
            guard let previous = before[sensor.id], previous.name == sensor.name, previous.state != sensor.state,
                  previous.state != .unknown, sensor.state != .unknown, !named.contains(sensor.name) else { return nil }
            let reading = sensor.reading
            // What it is about is in the worse of the two.
            let kind = Classification.kind(of: sensor.state == .nominal ? previous : sensor)
            return HardwareEvent(time: Self.timestamp(now), seconds: now, host: host, sensor: sensor.name, kind: kind, severity: sensor.state,
                                 isAsserted: HealthState.worst([previous.state, sensor.state]) == sensor.state,
                                 text: reading.reports.isEmpty ? "back to \(sensor.state.rawValue)" : reading.reports.joined(separator: ", "), source: .sensor)
        }
    }

    static func timestamp(_ seconds: Double) -> String {
        let milliseconds = Int((seconds * 1000).rounded())
        return Timestamp.format(seconds: milliseconds / 1000, milliseconds: milliseconds % 1000)
    }
}

extension SensorRecord {
    /// As users see it.
    var reading: SensorReading {
        SensorReading(recordID: id, name: name, type: IPMINames.sensorType(type), value: value, unit: unit, state: state, reports: reports)
    }
}
