import Configuration
import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Health

/// A helper that misbehaves, and settings that are wrong: none of it reaches a BMC.
final class BMCReaderTests: XCTestCase {
    private func failure(_ configuration: ServiceConfiguration, executable: String, total: Int = 5000) -> BMCFailure? {
        do throws(BMCFailure) {
            _ = try BMCReader(configuration, executable: executable, limits: .init(silence: 500, total: total)).read(known: nil)
            return nil
        } catch {
            return error
        }
    }

    func testAHelperThatEnds() throws {
        let folder = try Folder()
        let failure = try XCTUnwrap(failure(try folder.configuration(port: 1), executable: "/bin/false"))
        XCTAssertEqual(failure.failure.message, "The helper for the BMC ended without a result (exit 1)")
    }

    func testAHelperThatHangsAndIgnoresSignals() throws {
        let folder = try Folder()
        let helper = try folder.file("helper", "#!/bin/sh\ntrap '' TERM INT HUP\necho $$ > \(folder.path)/pid\nwhile :; do sleep 1; done\n", mode: 0o700)
        let began = MonotonicTime.now
        let failure = try XCTUnwrap(failure(try folder.configuration(port: 1), executable: helper, total: 700))
        XCTAssertEqual(failure.kind, .timeLimit)
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: began), 5000)
        let pid = try XCTUnwrap(pid_t(try String(contentsOfFile: folder.path + "/pid", encoding: .utf8).trimmingCharacters(in: .whitespacesAndNewlines)))
        XCTAssertEqual(kill(pid, 0), -1, "process \(pid) is still there")
    }

    func testNonsenseInsteadOfAReply() throws {
        let folder = try Folder()
        let helper = try folder.file("helper", "#!/bin/sh\nread line <&3\necho '{\"sensors\": 7}' >&3\n", mode: 0o700)
        let failure = try XCTUnwrap(failure(try folder.configuration(port: 1), executable: helper))
        XCTAssertTrue(failure.failure.message.hasPrefix("The helper for the BMC failed: "), "\(failure)")
        let endless = try folder.file("endless", "#!/bin/sh\nexec cat /dev/zero >&3\n", mode: 0o700)
        XCTAssertTrue("\(try XCTUnwrap(self.failure(try folder.configuration(port: 1), executable: endless)))".contains("longer than"))
    }

    func testMissingProgram() throws {
        let folder = try Folder()
        XCTAssertTrue("\(try XCTUnwrap(failure(try folder.configuration(port: 1), executable: "/no/such/program")))".contains("No such file"))
    }

    func testPasswordFile() throws {
        let folder = try Folder()
        let configuration = try folder.configuration(port: 1)
        let file = folder.path + "/password"
        XCTAssertEqual(try configuration.loadBMCPassword(), SimulatedBMC.password)
        func refusal() -> String { failure(configuration, executable: "/bin/false").map { "\($0)" } ?? "" }
        chmod(file, 0o644)
        XCTAssertEqual(refusal(), "\(file): The password is open to other users (mode 644). Run `chmod 600 \(file)`; if others could read it, make a new one")
        _ = try folder.file("password", String(repeating: "x", count: 21))
        XCTAssertTrue(refusal().contains("The BMC's password has 21 bytes. IPMI 2.0 has room for 20"), refusal())
        _ = try folder.file("password", "a\0b")
        XCTAssertTrue(refusal().contains("The BMC's password is no text"), refusal())
        unlink(file)
        XCTAssertTrue(refusal().contains("The file with the BMC's password does not exist"), refusal())
        let local = try folder.configuration(port: 1, "bmc_address = \"local\"", "bmc_workarounds = [ ]", "bmc_password_file = \"/no/such/file\"")
        XCTAssertEqual(try local.loadBMCPassword(), "", "the kernel's driver asks for none")
    }

    func testLocalBMCThatIsNotThere() throws {
        try XCTSkipIf(access("/dev/ipmi0", F_OK) == 0, "This host has a BMC")
        try XCTSkipIf(access(builtExecutable, X_OK) != 0, "No shadow-virt at \(builtExecutable)")
        let folder = try Folder()
        let configuration = try folder.configuration(port: 1, "bmc_address = \"local\"", "bmc_workarounds = [ ]")
        let failure = try XCTUnwrap(failure(configuration, executable: builtExecutable))
        XCTAssertEqual(failure.kind, .unreachable)
        XCTAssertTrue("\(failure)".hasPrefix("There is no /dev/ipmi0. Load the kernel's driver"), "\(failure)")
    }

    func testPauses() throws {
        let folder = try Folder()
        let configuration = try folder.configuration(port: 1, "bmc_interval = 40")
        let monitor = HealthMonitor(configuration, reader: BMCReader(configuration, executable: "/bin/false"))
        var pauses = [monitor.pause]
        for _ in 0..<5 {
            monitor.readNow()
            pauses.append(monitor.pause)
        }
        XCTAssertEqual(pauses, [40, 80, 160, 300, 300, 300])
        XCTAssertEqual(monitor.report.state, .unknown)
        XCTAssertEqual(monitor.report.reasons, ["The helper for the BMC ended without a result (exit 1)"])
    }

    func testNoBMC() {
        let monitor = HealthMonitor(ServiceConfiguration(environment: [:]))
        XCTAssertFalse(monitor.hasBMC)
        monitor.start()
        XCTAssertEqual(monitor.report.state, .unknown)
        XCTAssertNil(monitor.report.bmc)
    }
}
