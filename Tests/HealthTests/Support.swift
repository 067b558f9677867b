import Configuration
import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Health

/// The program that the helper processes are: what was built along with the tests.
let builtExecutable = ProcessInfo.processInfo.environment["SHADOW_VIRT_BINARY"] ?? Bundle.main.bundleURL.appendingPathComponent("shadow-virt").path

/// A folder that goes away with its owner.
final class Folder {
    let path = NSTemporaryDirectory() + "/shadow-virt-health-\(UUID().uuidString.prefix(8))"

    init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// Writes a file with this mode and returns its path.
    func file(_ name: String, _ text: String, mode: Int = 0o600) throws -> String {
        let path = "\(path)/\(name)"
        try text.write(toFile: path, atomically: false, encoding: .utf8)
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
        return path
    }

    /// A configuration as the service reads it, for a BMC at this port of 127.0.0.1.
    func configuration(port: UInt16, password: String = SimulatedBMC.password, _ lines: String...) throws -> ServiceConfiguration {
        let passwordFile = try file("password", password + "\n")
        let text = ["host_name = \"a\"", "state_dir = \"\(path)/state\"", "bmc_address = \"127.0.0.1:\(port)\"", "bmc_user = \"watch\"",
                    "bmc_password_file = \"\(passwordFile)\"", "bmc_workarounds = [ \"opensesspriv\" ]"]
            .filter { line in !lines.contains { $0.hasPrefix(line.prefix { $0 != " " }) } } + lines
        return try ServiceConfiguration(bytes: Array(text.joined(separator: "\n").utf8), file: "\(path)/shadow-virt.conf", environment: [:])
    }
}

/// Events as a handler got them.
final class Events: Sendable {
    private let all = Guarded<[HardwareEvent]>([])

    func add(_ events: [HardwareEvent]) { all.change { $0 += events } }

    /// Those since the last call.
    func take() -> [HardwareEvent] {
        all.change { all in
            defer { all = [] }
            return all
        }
    }
}

extension HealthReport {
    func sensor(_ name: String) -> SensorReading? { sensors.first { $0.name == name } }
}

extension HardwareEvent {
    /// Short, for comparisons.
    var brief: String { "\(sensor) \(kind.rawValue) \(severity.rawValue)\(isAsserted ? "" : " over")\(source == .sensor ? " (sensor)" : "")" }
}

/// Records as a BMC would give them.
enum Sample {
    static func record(_ id: Int, time: UInt32? = 1_700_000_000, sensor: String = "CPU Temp", type: Int = 1, offsetType: Int = 0, offset: Int = 9,
                       asserted: Bool = true, state: HealthState = .critical, text: String = "Upper Critical - going high") -> LogRecord {
        LogRecord(id: id, time: time, sensor: sensor, sensorNumber: 4, sensorType: type, offsetType: offsetType, offset: offset, isAsserted: asserted, state: state, text: text)
    }

    static func sensor(_ id: Int, _ name: String, _ state: HealthState, type: Int = 1, value: Double? = nil, unit: String? = nil, bitsType: Int = 0, bits: Int = 0,
                       reports: [String] = []) -> SensorRecord {
        SensorRecord(id: id, name: name, type: type, state: state, value: value, unit: unit, bitsType: bitsType, bits: bits, reports: reports)
    }
}
