import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Health

/// The service with a BMC, asked by the command line.
final class ServiceTests: XCTestCase {
    private func run(_ arguments: [String]) throws -> (status: Int32, out: String, error: String) {
        let process = Process(), out = Pipe(), error = Pipe()
        process.executableURL = URL(fileURLWithPath: builtExecutable)
        process.arguments = arguments
        (process.standardInput, process.standardOutput, process.standardError) = (FileHandle.nullDevice, out, error)
        try process.run()
        let text = (out.fileHandleForReading.readDataToEndOfFile(), error.fileHandleForReading.readDataToEndOfFile())
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: text.0, as: UTF8.self), String(decoding: text.1, as: UTF8.self))
    }

    /// Repeats `health` until it says so, for 15 s.
    private func health(_ configuration: String, until condition: (HealthReport) -> Bool) throws -> (status: Int32, report: HealthReport) {
        let deadline = MonotonicTime.now.adding(milliseconds: 15_000)
        while true {
            let answer = try run(["health", "--config", configuration, "--format", "json", "--quiet"])
            if let report = try? JSONDecoder().decode(HealthReport.self, from: Data(answer.out.utf8)), condition(report) || deadline < .now {
                return (answer.status, report)
            }
            guard deadline > .now else { throw BMCFailure(.other, "No answer: \(answer)") }
            usleep(100_000)
        }
    }

    private func serve(_ configuration: String, _ log: String) throws -> Process {
        let service = Process()
        service.executableURL = URL(fileURLWithPath: builtExecutable)
        service.arguments = ["serve", "--config", configuration]
        (service.standardInput, service.standardOutput, service.standardError) = (FileHandle.nullDevice, FileHandle.nullDevice, FileHandle(forWritingAtPath: log))
        try service.run()
        return service
    }

    /// A second host without a BMC: what it says of the first one, and its copy of that one's bundle.
    private func askFromAnotherHost(_ folder: Folder, _ short: String, _ port: UInt16) throws {
        let configuration = try folder.file("other.conf", """
            host_name = "b"
            libvirt_uri = "test:///default"
            listen = "127.0.0.1:\(try SimulatedBMC.freePort(.tcp))"
            control_socket = "\(short)/b/control.sock"
            metrics_listen = "off"
            runtime_dir = "\(short)/b"
            state_dir = "\(folder.path)/b"
            peers = [ "a 127.0.0.1:\(port) test:///default" ]
            """)
        let service = try serve(configuration, try folder.file("other.log", ""))
        defer {
            service.terminate()
            service.waitUntilExit()
        }
        let own = try health(configuration) { _ in true }
        XCTAssertEqual([own.report.host, own.report.state.rawValue], ["b", "unknown"])
        let text = try run(["health", "--host", "A", "--config", configuration])
        XCTAssertEqual(text.status, 2, text.error)
        XCTAssertTrue(text.out.hasPrefix("Host:    a\nState:   critical\nReason:  DIMM A1: "), text.out)
        let unknown = try run(["health", "--host", "c", "--config", configuration])
        XCTAssertEqual(unknown.status, 1)
        XCTAssertTrue(unknown.error.contains("Unknown host c"), unknown.error)

        let made = try run(["diagnose", "a", "--config", configuration])
        XCTAssertTrue(made.out.contains("/state/diagnose/a-") && made.out.contains(" on a; a copy is \(folder.path)/b/diagnose/from-a/a-"), made.out + made.error)
        let copy = try FileManager.default.contentsOfDirectory(atPath: folder.path + "/b/diagnose/from-a"), whole = try FileManager.default.contentsOfDirectory(atPath: folder.path + "/state/diagnose")
        XCTAssertEqual(copy, whole)
        let name = try XCTUnwrap(copy.first)
        XCTAssertEqual(FileManager.default.contents(atPath: "\(folder.path)/b/diagnose/from-a/\(name)"), FileManager.default.contents(atPath: "\(folder.path)/state/diagnose/\(name)"))
        let list = try run(["diagnose", "a", "--list", "--config", configuration])
        XCTAssertTrue(list.out.contains(name), list.out + list.error)
        let none = try run(["diagnose", "a", "--fetch", "a-20000101T000000000.tar.gz", "--config", configuration])
        XCTAssertEqual(none.status, 1)
        XCTAssertTrue(none.error.contains("There is no bundle a-20000101T000000000.tar.gz here"), none.error)
    }

    func testHealthAndDoctor() throws {
        guard geteuid() == 0 else { throw XCTSkip("Test of the service with a BMC skipped: not root") }
        let folder = try Folder()
        let bmc = try SimulatedBMC(in: folder.path)
        let lines = try folder.configuration(port: bmc.port)
        let port = try SimulatedBMC.freePort(.tcp)
        let short = "/tmp/sv-health-\(getpid())"
        defer { try? FileManager.default.removeItem(atPath: short) }
        let configuration = try folder.file("shadow-virt.conf", """
            host_name = "a"
            libvirt_uri = "test:///default"
            listen = "127.0.0.1:\(port)"
            control_socket = "\(short)/control.sock"
            metrics_listen = "off"
            runtime_dir = "\(short)"
            state_dir = "\(folder.path)/state"
            bmc_address = "\(lines.bmc.name)"
            bmc_user = "watch"
            bmc_password_file = "\(lines.bmc.passwordFile)"
            bmc_workarounds = [ "opensesspriv" ]
            bmc_interval = 5
            """)
        let log = try folder.file("log", "")
        let service = try serve(configuration, log)
        defer {
            service.terminate()
            service.waitUntilExit()
        }

        let good = try health(configuration) { $0.state == .nominal }
        XCTAssertEqual(good.status, 0)
        XCTAssertEqual(good.report.sensors.count, SimulatedBMC.sensorCount)
        try bmc.set(.memory, bit: 1)
        let bad = try health(configuration) { $0.state == .critical }
        XCTAssertEqual(bad.status, 2)
        XCTAssertEqual(bad.report.events.map(\.brief), ["DIMM A1 uncorrectable_ecc critical"])

        let text = try run(["health", "--config", configuration])
        XCTAssertEqual(text.status, 2)
        XCTAssertTrue(text.out.contains("State:   critical\nReason:  DIMM A1: "), text.out)
        let doctor = try run(["doctor", "--config", configuration])
        XCTAssertTrue(doctor.out.contains("  bmc "), doctor.out + doctor.error)
        try askFromAnotherHost(folder, short, port)
        let logged = try String(contentsOfFile: log, encoding: .utf8)
        XCTAssertEqual(logged.components(separatedBy: "error: BMC: DIMM A1: Uncorrectable memory error (uncorrectable_ecc, critical)").count, 2, logged)
    }
}
