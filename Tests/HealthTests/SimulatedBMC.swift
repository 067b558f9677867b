import Configuration
import Foundation
import Glibc
import Platform
import XCTest
@testable import Health

/// A real BMC but for the hardware: OpenIPMI's ipmi_sim, with sensors of our own, on ports of 127.0.0.1 that nobody else has.
final class SimulatedBMC {
    /// Numbers of its sensors.
    enum Number: Int {
        case temperature = 1, fan = 2, volt = 3, powerSupply = 16, redundancy = 17, memory = 18, drive = 19
    }

    /// Raw value by which the threshold is reached: lower non-critical, lower critical, upper non-critical, upper critical.
    private struct Analog {
        var number: Number
        var name: String
        var type: (name: String, code: Int)
        var unit: String
        /// value = raw × factor × 10^exponent
        var factor: Int
        var exponent = 0
        var thresholds: [String: Int]
        var raw: Int
    }

    private struct Discrete {
        var number: Number
        var name: String
        var type: (name: String, code: Int)
        /// 0x6f: the type's own states; 0x0b: redundancy.
        var states = 0x6F
        var bits: [Int]
        var set: [Int]
    }

    private static let analog = [
        Analog(number: .temperature, name: "CPU Temp", type: ("Temperature", 1), unit: "degrees_C", factor: 1, thresholds: ["unc": 80, "uc": 90], raw: 45),
        Analog(number: .fan, name: "Fan 1", type: ("Fan", 4), unit: "RPM", factor: 100, thresholds: ["lnc": 12, "lc": 6], raw: 52),
        Analog(number: .volt, name: "12V", type: ("Voltage", 2), unit: "Volts", factor: 63, exponent: -3, thresholds: ["lnc": 181, "lc": 171, "unc": 200, "uc": 210], raw: 191),
    ]
    private static let discrete = [
        Discrete(number: .powerSupply, name: "PSU 1", type: ("Power_Supply", 8), bits: [0, 1, 2, 3], set: [0]),
        Discrete(number: .redundancy, name: "PSU Redundancy", type: ("Power_Unit", 9), states: 0x0B, bits: [0, 1, 2], set: [0]),
        Discrete(number: .memory, name: "DIMM A1", type: ("Memory", 12), bits: [0, 1, 5], set: []),
        Discrete(number: .drive, name: "Bay 3", type: ("Drive_Slot", 13), bits: [0, 1, 2], set: [0]),
    ]
    static var sensorCount: Int { analog.count + discrete.count }
    static let password = "hands-off-4711"

    let port: UInt16
    private let consolePort: UInt16
    private let folder: String
    private let process = Process()

    static let tools = ["ipmi_sim", "sdrcomp", "ipmi-sel"]

    /// Why there is none here; nil when there can be.
    static let obstacle: String? = {
        let folders: [String] = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").map(String.init)
        let missing = tools.first { tool in !folders.contains { access("\($0)/\(tool)", X_OK) == 0 } }
        return missing.map { "no \($0) (Debian: apt install openipmi freeipmi-tools)" }
    }()

    /// - Parameters:
    ///   - authentications: of IPMI 1.5 that it offers.
    ///   - key: K_g; nil: none.
    init(in parent: String, authentications: [String] = ["md5"], key: String? = nil) throws {
        if let obstacle = Self.obstacle { throw XCTSkip("Tests with a simulated BMC skipped: \(obstacle)") }
        (port, consolePort) = (try Self.freePort(.udp), try Self.freePort(.tcp))
        folder = "\(parent)/bmc-\(port)"
        let descriptions = "\(folder)/state/ipmi_sim/test"
        try FileManager.default.createDirectory(atPath: descriptions, withIntermediateDirectories: true)
        try write("lan.conf", lanConfiguration(authentications, key))
        try write("bmc.emu", Self.script)
        try write("bmc.sdrs", Self.descriptions)
        try Self.run("sdrcomp", ["-8", "-o", "\(descriptions)/sdr.20.main", "\(folder)/bmc.sdrs"])
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["ipmi_sim", "-c", "\(folder)/lan.conf", "-f", "\(folder)/bmc.emu", "-s", "\(folder)/state", "-n"]
        try write("log", "")
        let log = FileHandle(forWritingAtPath: "\(folder)/log")
        (process.standardInput, process.standardOutput, process.standardError) = (FileHandle.nullDevice, log, log)
        try process.run()
        try waitForConsole()
    }

    deinit {
        guard process.isRunning else { return }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    /// It answers nothing any more, like a BMC whose firmware hangs.
    func freeze() { kill(process.processIdentifier, SIGSTOP) }
    func thaw() { kill(process.processIdentifier, SIGCONT) }
    func stop() {
        process.terminate()
        process.waitUntilExit()
    }

    // MARK: What happens to the hardware

    /// In the sensor's raw units: °C, 100 RPM, 63 mV. `logging` false: the BMC logs nothing of it.
    func set(_ sensor: Number, raw: Int, logging: Bool = true) throws {
        try command("sensor_set_value 0x20 0 \(sensor.rawValue) \(raw) \(logging ? 1 : 0)")
    }

    func set(_ sensor: Number, bit: Int, _ value: Bool = true, logging: Bool = true) throws {
        try command("sensor_set_bit 0x20 0 \(sensor.rawValue) \(bit) \(value ? 1 : 0) \(logging ? 1 : 0)")
    }

    /// A record of a sensor that has no description: type, number, offset of its own states.
    func log(type: Int, number: Int, offset: Int) throws {
        // Record type 2 (system event): time, generator, version 4, sensor type and number, assertion of type 0x6f, data.
        let bytes = [0, 0, 0, 0, 0x20, 0, 4, type, number, 0x6F, offset, 0xFF, 0xFF]
        try command("sel_add 0x20 2 " + bytes.map { "0x" + String($0, radix: 16) }.joined(separator: " "))
    }

    /// Clears its log, as `ipmitool sel clear` does: there is no command of the simulator for it.
    func clearLog() throws {
        try Self.run("ipmi-sel", ["-h", "127.0.0.1:\(port)", "-u", "admin", "-p", Self.password, "-D", "LAN_2_0", "-W", "opensesspriv", "--clear",
                                  "--sdr-cache-directory", folder])
    }

    private func command(_ text: String) throws {
        let socket = try connectConsole()
        _ = try answer(socket)
        let bytes = Array("\(text)\n".utf8)
        guard send(socket.raw, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count else { throw SystemError("send", "ipmi_sim") }
        let answer = try answer(socket)
        XCTAssertFalse(answer.contains("**") || answer.contains("Invalid"), "ipmi_sim: \(text): \(answer)")
    }

    /// What it says until its next prompt.
    private func answer(_ socket: borrowing Descriptor) throws -> String {
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        let deadline = MonotonicTime.now.adding(milliseconds: 5000)
        while !text.suffix(2).elementsEqual(Array("> ".utf8)) {
            guard try !wait(socket.raw, for: .readable, until: deadline).isEmpty else { throw SystemError("recv", "ipmi_sim", code: ETIMEDOUT) }
            let count = recv(socket.raw, &buffer, buffer.count, 0)
            guard count > 0 else { throw SystemError("recv", "ipmi_sim") }
            text += buffer[..<count]
        }
        return String(decoding: text, as: UTF8.self)
    }

    /// SOCK_STREAM and SOCK_DGRAM, whose names Swift 6.0 does not see beside this C library.
    enum SocketKind: Int32 {
        case tcp = 1, udp = 2
    }

    private func connectConsole() throws -> Descriptor {
        let socket = try Descriptor(checking: Glibc.socket(AF_INET, SocketKind.tcp.rawValue, 0), "socket")
        var address = Self.loopback(consolePort)
        let connected = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(socket.raw, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
        }
        guard connected == 0 else { throw SystemError("connect", "ipmi_sim") }
        return socket
    }

    private func waitForConsole() throws {
        let deadline = MonotonicTime.now.adding(milliseconds: 5000)
        while true {
            do {
                _ = try answer(try connectConsole())
                return
            } catch {
                guard process.isRunning, deadline > .now else {
                    let log = (try? String(contentsOfFile: "\(folder)/log", encoding: .utf8)) ?? ""
                    throw BMCFailure(.other, "ipmi_sim does not start (\(error)): \(log.suffix(1000))")
                }
                usleep(5000)
            }
        }
    }

    // MARK: Its files (ipmi_lan(5), ipmi_sim_cmd(5), sdrcomp(8))

    private func lanConfiguration(_ authentications: [String], _ key: String?) -> String {
        let allowed = ["callback", "user", "operator", "admin"].map { "    allowed_auths_\($0) \(authentications.joined(separator: " "))\n" }.joined()
            + (key.map { "    bmc_key \"\($0)\"\n" } ?? "")
        return """
            name "test"
            set_working_mc 0x20
              startlan 1
                addr 127.0.0.1 \(port)
                priv_limit admin
            \(allowed)    guid 00112233445566778899aabbccddeeff
              endlan
              user 1 true "" "" user 10 md5
              user 2 true "admin" "\(Self.password)" admin 10 md5
              user 3 true "watch" "\(Self.password)" user 10 md5
            console 127.0.0.1 \(consolePort)

            """
    }

    private static let thresholdOrder = ["unr", "uc", "unc", "lnr", "lc", "lnc"]

    /// 15 states, the highest first.
    private static func mask(_ bits: [Int]) -> String { (0..<15).reversed().map { bits.contains($0) ? "1" : "0" }.joined() }

    private static var script: String {
        var lines = ["mc_setbmc 0x20", "mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr", "sel_enable 0x20 200 0x0a",
                     // ipmi_sim wants its watchdog at 0.
                     "sensor_add 0x20 0 0 35 0x6f event-only",
                     "sensor_set_event_support 0x20 0 0 enable scanning per-state \(mask([0, 1, 2, 3])) \(mask([])) \(mask([0, 1, 2, 3])) \(mask([]))"]
        func sensor(_ number: Number, type: Int, states: Int, events: [Int], _ settings: [String]) {
            lines.append("sensor_add 0x20 0 \(number.rawValue) \(type) 0x\(String(states, radix: 16))")
            let mask = mask(events)
            lines.append("sensor_set_event_support 0x20 0 \(number.rawValue) enable scanning per-state \(mask) \(mask) \(mask) \(mask)")
            lines += settings
        }
        // Lower ones are reported when the value goes low, upper ones when it goes high (table 42-2).
        let offsets = ["lnc": 0, "lc": 2, "unc": 7, "uc": 9]
        for one in analog {
            let enabled = thresholdOrder.map { one.thresholds[$0] == nil ? "0" : "1" }.joined()
            let values = thresholdOrder.map { "\(one.thresholds[$0] ?? 0)" }.joined(separator: " ")
            sensor(one.number, type: one.type.code, states: 1, events: one.thresholds.keys.compactMap { offsets[$0] },
                   ["sensor_set_threshold 0x20 0 \(one.number.rawValue) settable \(enabled) \(values)",
                    "sensor_set_value 0x20 0 \(one.number.rawValue) \(one.raw) 0"])
        }
        for one in discrete {
            sensor(one.number, type: one.type.code, states: one.states, events: one.bits,
                   one.set.map { "sensor_set_bit 0x20 0 \(one.number.rawValue) \($0) 1 0" })
        }
        return (lines + ["mc_enable 0x20", ""]).joined(separator: "\n")
    }

    private static var descriptions: String {
        func record(_ type: Int, _ number: Number, _ name: String, typeName: String, states: Int, _ more: [(String, String)]) -> String {
            let fields: [(String, String)] = [
                ("sensor_owner_id", "0x20"), ("sensor_owner_lun", "0"), ("channel_number", "0"), ("sensor_number", "\(number.rawValue)"),
                ("entity_id", "system_board"), ("entity_instance", "\(number.rawValue)"), ("init_scanning", "true"), ("init_events", "true"),
                ("init_sensor_type", "true"), ("default_event_gen_on", "true"), ("default_sensor_scan_on", "true"), ("sensor_auto_rearm", "true"),
                ("sensor_event_msg_ctrl", "per_state"), ("sensor_type", typeName), ("event_reading_type_code", "0x\(String(states, radix: 16))"),
            ] + more + [("id_string", "\"\(name)\"")]
            return "sdr type \(type)\n" + fields.map { "  \($0.0) \($0.1)\n" }.joined() + "endsdr\n"
        }
        let analogRecords = analog.map { one in
            let thresholds = one.thresholds.sorted { $0.key < $1.key }.flatMap { name, raw -> [(String, String)] in
                let event = name + (name.hasPrefix("l") ? "gl" : "gh")
                return [("return_\(name)", "true"), ("assert_\(event)", "true"), ("deassert_\(event)", "true"), ("\(name)_thrsh_settable", "true"),
                        ("\(name)_thrsh_readable", "true"), ("\(name)_thresh", "\(raw)")]
            }
            return record(1, one.number, one.name, typeName: one.type.name, states: 1, [
                ("init_thresholds", "true"), ("init_hysteresis", "true"), ("sensor_hysteresis", "settable"), ("sensor_threshold_access", "settable"),
                ("analog_data_format", "unsigned"), ("rate_unit", "none"), ("modifier_unit", "none"), ("percentage", "false"), ("base_unit", one.unit),
                ("modifier_unit_code", "unspecified"), ("linearization", "linear"), ("m", "\(one.factor)"), ("tolerance", "0"), ("b", "0"), ("accuracy", "1"),
                ("accuracy_exp", "0"), ("sensor_direction", "input"), ("r_exp", "\(one.exponent)"), ("b_exp", "0"), ("sensor_maximum", "255"),
                ("sensor_minimum", "0"), ("positive_hysteresis", "0"), ("negative_hysteresis", "0"),
            ] + thresholds)
        }
        let discreteRecords = discrete.map { one in
            record(2, one.number, one.name, typeName: one.type.name, states: one.states, one.bits.flatMap { bit in
                [("event\(bit)_state_ret", "true"), ("assert_event\(bit)", "true"), ("deassert_event\(bit)", "true")]
            })
        }
        return (analogRecords + discreteRecords).joined(separator: "\n")
    }

    private func write(_ name: String, _ text: String) throws { try text.write(toFile: "\(folder)/\(name)", atomically: false, encoding: .utf8) }

    private static func run(_ tool: String, _ arguments: [String]) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = [tool] + arguments
        let output = Pipe()
        (process.standardInput, process.standardOutput, process.standardError) = (FileHandle.nullDevice, output, output)
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw BMCFailure(.other, "\(tool) failed: \(text)") }
    }

    // MARK: Ports

    private static func loopback(_ port: UInt16) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        address.sin_port = port.bigEndian
        return address
    }

    /// One that is free at the moment.
    static func freePort(_ type: SocketKind) throws -> UInt16 {
        let socket = try Descriptor(checking: Glibc.socket(AF_INET, type.rawValue, 0), "socket")
        var address = loopback(0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let done = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(socket.raw, $0, length) == 0 && getsockname(socket.raw, $0, &length) == 0 }
        }
        guard done else { throw SystemError("bind") }
        return UInt16(bigEndian: address.sin_port)
    }
}
