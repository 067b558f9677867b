import Configuration
import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Health

/// Against a running ipmi_sim, through the helper process that the service uses.
final class SimulatedBMCTests: XCTestCase {
    private let events = Events()
    private var folder: Folder!

    override func setUpWithError() throws {
        folder = try Folder()
        try XCTSkipIf(access(builtExecutable, X_OK) != 0, "No shadow-virt at \(builtExecutable)")
    }

    override func tearDown() { folder = nil }

    private func monitor(_ configuration: ServiceConfiguration, limits: BMCReader.Limits = .init(silence: 5000, total: 20_000)) -> HealthMonitor {
        let monitor = HealthMonitor(configuration, reader: BMCReader(configuration, executable: builtExecutable, limits: limits))
        monitor.onEvents { [events] in events.add($0) }
        return monitor
    }

    /// A BMC, and a monitor that has read it once.
    private func start() throws -> (SimulatedBMC, HealthMonitor) {
        let bmc = try SimulatedBMC(in: folder.path)
        let monitor = monitor(try folder.configuration(port: bmc.port))
        monitor.readNow()
        XCTAssertEqual(monitor.report.bmc?.problem, nil)
        XCTAssertEqual(monitor.report.state, .nominal, "\(monitor.report.reasons)")
        return (bmc, monitor)
    }

    /// Reads, and compares the events that were told of.
    private func read(_ monitor: HealthMonitor, expect expected: [String], line: UInt = #line) {
        monitor.readNow()
        XCTAssertEqual(monitor.report.bmc?.problem, nil, line: line)
        XCTAssertEqual(events.take().map(\.brief), expected, line: line)
    }

    func testNominal() throws {
        let (bmc, monitor) = try start()
        defer { withExtendedLifetime(bmc) {} }
        let report = monitor.report
        XCTAssertEqual(report.host, "a")
        XCTAssertEqual(report.bmc?.isReachable, true)
        XCTAssertEqual(report.sensors.count, SimulatedBMC.sensorCount)
        XCTAssertEqual(report.sensor("CPU Temp"), SensorReading(recordID: 1, name: "CPU Temp", type: "temperature", value: 45, unit: "C", state: .nominal))
        XCTAssertEqual(report.sensor("Fan 1")?.value, 5200)
        XCTAssertEqual(report.sensor("Fan 1")?.unit, "RPM")
        XCTAssertEqual(try XCTUnwrap(report.sensor("12V")?.value), 12.033, accuracy: 0.001)
        XCTAssertEqual(report.sensor("PSU 1")?.reports, ["Presence detected"])
        XCTAssertNil(report.sensor("PSU 1")?.value)
        XCTAssertEqual(report.events, [])
        // Descriptions of the sensors are kept, and found again.
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder.path + "/state/bmc/sensors").count, 2)
        let before = Self.children(), began = MonotonicTime.now
        for _ in 0..<5 { read(monitor, expect: []) }
        let after = Self.children()
        print("MEASURED one reading of \(report.sensors.count) sensors and the log's end, helper's start included: "
            + "\(Int(MonotonicTime.now.milliseconds(since: began) / 5)) ms, \(Int((after.cpuMs - before.cpuMs) / 5)) ms of CPU, at most \(after.mostKiB >> 10) MiB")
    }

    /// What ended child processes have used.
    private static func children() -> (cpuMs: Double, mostKiB: Int) {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_CHILDREN.rawValue), &usage)
        func milliseconds(_ time: timeval) -> Double { Double(time.tv_sec) * 1000 + Double(time.tv_usec) / 1000 }
        return (milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime), usage.ru_maxrss)
    }

    func testTemperature() throws {
        let (bmc, monitor) = try start()
        try bmc.set(.temperature, raw: 85)
        read(monitor, expect: ["CPU Temp temperature warning"])
        XCTAssertEqual(monitor.report.state, .warning, "a value beyond a non-critical threshold is a warning here")
        XCTAssertEqual(monitor.report.reasons.count, 1)
        XCTAssertTrue(monitor.report.reasons[0].hasPrefix("CPU Temp: ") && monitor.report.reasons[0].hasSuffix("(85 C)"), monitor.report.reasons[0])
        try bmc.set(.temperature, raw: 95)
        read(monitor, expect: ["CPU Temp temperature critical"])
        XCTAssertEqual(monitor.report.state, .critical)
        XCTAssertEqual(monitor.report.sensor("CPU Temp")?.value, 95)
        try bmc.set(.temperature, raw: 45)
        monitor.readNow()
        XCTAssertEqual(Set(events.take().map(\.brief)), ["CPU Temp temperature nominal over", "CPU Temp temperature warning over"])
        XCTAssertEqual(monitor.report.state, .nominal)
    }

    func testFanFailure() throws {
        let (bmc, monitor) = try start()
        let before = Date().timeIntervalSince1970
        try bmc.set(.fan, raw: 0)
        read(monitor, expect: ["Fan 1 fan warning", "Fan 1 fan critical"])
        XCTAssertEqual(monitor.report.sensor("Fan 1")?.value, 0)
        XCTAssertEqual(monitor.report.state, .critical)
        // The BMC's clock was never set: the event is of the time when it was seen.
        let event = try XCTUnwrap(monitor.report.events.last)
        XCTAssertTrue((before...before + 60).contains(event.seconds), event.time)
        XCTAssertEqual([event.host, event.source.rawValue], ["a", "log"])
    }

    func testMemoryErrors() throws {
        let (bmc, monitor) = try start()
        try bmc.set(.memory, bit: 0)
        read(monitor, expect: ["DIMM A1 correctable_ecc warning"])
        XCTAssertEqual(monitor.report.state, .warning)
        try bmc.set(.memory, bit: 1)
        read(monitor, expect: ["DIMM A1 uncorrectable_ecc critical"])
        XCTAssertEqual(monitor.report.state, .critical)
    }

    func testMemoryErrorOfASensorThatCannotBeRead() throws {
        let (bmc, monitor) = try start()
        try bmc.log(type: 12, number: 77, offset: 1)
        monitor.readNow()
        let event = try XCTUnwrap(events.take().first)
        XCTAssertEqual([event.kind.rawValue, event.severity.rawValue], ["uncorrectable_ecc", "critical"])
        XCTAssertEqual(monitor.report.state, .critical, "no sensor shows it, so the event counts")
        read(monitor, expect: [])
        XCTAssertEqual(monitor.report.state, .critical)
    }

    func testPowerSupply() throws {
        let (bmc, monitor) = try start()
        try bmc.set(.powerSupply, bit: 1)
        try bmc.set(.redundancy, bit: 1)
        read(monitor, expect: ["PSU 1 power_supply critical", "PSU Redundancy redundancy_lost critical"])
        XCTAssertEqual(monitor.report.sensor("PSU 1")?.reports.last, "Power Supply Failure detected")
    }

    func testDrive() throws {
        let (bmc, monitor) = try start()
        try bmc.set(.drive, bit: 2)
        monitor.readNow()
        let predicted = try XCTUnwrap(events.take().first)
        XCTAssertEqual(predicted.kind, .drivePredictiveFailure)
        XCTAssertTrue(predicted.isTrouble)
        try bmc.set(.drive, bit: 1)
        read(monitor, expect: ["Bay 3 drive_fault critical"])
    }

    func testAChangeThatIsNotLoggedIsAnEventAllTheSame() throws {
        let (bmc, monitor) = try start()
        try bmc.set(.fan, raw: 0, logging: false)
        read(monitor, expect: ["Fan 1 fan critical (sensor)"])
        try bmc.set(.fan, raw: 50, logging: false)
        read(monitor, expect: ["Fan 1 fan nominal over (sensor)"])
    }

    // MARK: The log

    func testNewRecordsOnlyAcrossRestarts() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let configuration = try folder.configuration(port: bmc.port)
        try bmc.set(.memory, bit: 0)
        let first = monitor(configuration)
        read(first, expect: [])  // What was there before is no news.
        try bmc.set(.drive, bit: 1)
        read(first, expect: ["Bay 3 drive_fault critical"])
        read(first, expect: [])

        try bmc.set(.powerSupply, bit: 1)
        let second = monitor(configuration)
        read(second, expect: ["PSU 1 power_supply critical"])
        read(monitor(configuration), expect: [])
    }

    func testClearedLog() throws {
        let (bmc, monitor) = try start()
        try bmc.set(.memory, bit: 0)
        read(monitor, expect: ["DIMM A1 correctable_ecc warning"])
        try bmc.clearLog()
        read(monitor, expect: [])
        try bmc.set(.drive, bit: 1)
        read(monitor, expect: ["Bay 3 drive_fault critical"])

        // Cleared and filled again between two readings: record 1 is another one now.
        try bmc.clearLog()
        try bmc.set(.powerSupply, bit: 1)
        read(monitor, expect: ["PSU 1 power_supply critical"])
    }

    func testAnUnchangedLogIsNotReadAgain() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let configuration = try folder.configuration(port: bmc.port)
        try bmc.set(.memory, bit: 0)
        let reader = BMCReader(configuration, executable: builtExecutable)
        let first = try reader.read(known: nil)
        XCTAssertEqual(first.log?.count, 1)
        XCTAssertNil(try reader.read(known: LogMark(last: first.log?.last)).log)
        XCTAssertEqual(try reader.read(known: LogMark(last: nil)).log?.count, 1)
    }

    // MARK: Access

    private func refusal(_ configuration: ServiceConfiguration) throws -> BMCFailure {
        let reader = BMCReader(configuration, executable: builtExecutable, limits: .init(silence: 1000, total: 10_000))
        do {
            _ = try reader.read(known: nil)
        } catch {
            return error
        }
        XCTFail("It let us in")
        throw XCTSkip()
    }

    func testWrongPassword() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let configuration = try folder.configuration(port: bmc.port, password: "guess")
        let monitor = monitor(configuration)
        monitor.readNow()
        let status = try XCTUnwrap(monitor.report.bmc)
        XCTAssertFalse(status.isReachable)
        XCTAssertEqual(status.problem?.message, "The BMC at 127.0.0.1:\(bmc.port) refuses the password of user 'watch'")
        XCTAssertEqual(monitor.report.state, .unknown)
        XCTAssertEqual(monitor.pause, 300, "many BMCs lock an account that is tried again and again")
        // A new password needs no restart.
        _ = try folder.file("password", SimulatedBMC.password)
        monitor.readNow()
        XCTAssertEqual(monitor.report.state, .nominal)
        XCTAssertEqual(monitor.pause, 30)
    }

    func testUnknownUserAndPrivilege() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let unknown = try refusal(try folder.configuration(port: bmc.port, "bmc_user = \"nobody\""))
        XCTAssertEqual(unknown.kind, .refused)
        XCTAssertTrue(unknown.description.contains("knows no user 'nobody'"), "\(unknown)")
        let workaround = try refusal(try folder.configuration(port: bmc.port, "bmc_workarounds = [ ]"))
        XCTAssertTrue(workaround.description.contains("opensesspriv"), "\(workaround)")
        XCTAssertFalse([unknown, workaround].contains { $0.description.contains(SimulatedBMC.password) })
    }

    func testAMonitorReadsByItself() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let monitor = monitor(try folder.configuration(port: bmc.port))
        XCTAssertEqual(monitor.report.state, .unknown)
        XCTAssertEqual(monitor.report.bmc, BMCStatus(address: "127.0.0.1:\(bmc.port)"))
        monitor.start()
        defer { monitor.stop() }
        XCTAssertTrue(monitor.wait(readings: 1, until: .now.adding(milliseconds: 10_000)))
        XCTAssertEqual(monitor.report.state, .nominal)
    }

    func testDeadPort() throws {
        try XCTSkipIf(SimulatedBMC.obstacle != nil, SimulatedBMC.obstacle ?? "")
        let failure = try refusal(try folder.configuration(port: try SimulatedBMC.freePort(.udp)))
        XCTAssertEqual(failure.kind, .unreachable)
        XCTAssertTrue(failure.description.contains("does not answer"), "\(failure)")
    }

    // MARK: A BMC that hangs

    func testFrozenBMCIsGivenUpAndComesBack() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let monitor = monitor(try folder.configuration(port: bmc.port, "bmc_interval = 5"), limits: .init(silence: 1500, total: 10_000))
        monitor.readNow()
        XCTAssertEqual(monitor.report.state, .nominal)
        bmc.freeze()
        let began = MonotonicTime.now
        monitor.readNow()
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: began), 8000)
        XCTAssertEqual(monitor.report.bmc?.isReachable, false)
        XCTAssertEqual(monitor.report.state, .unknown)
        XCTAssertEqual(monitor.report.sensors.count, SimulatedBMC.sensorCount, "what it said last is still shown")
        XCTAssertEqual(monitor.pause, 10)
        bmc.thaw()
        monitor.readNow()
        XCTAssertEqual(monitor.report.state, .nominal)
        XCTAssertEqual(monitor.pause, 5)
    }

    /// FreeIPMI's own patience is longer than the helper's life here. Whoever asks meanwhile gets the last state at once, and the password is nowhere to be seen.
    func testHelperIsKilledWhenItsTimeIsOver() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let configuration = try folder.configuration(port: bmc.port)
        let monitor = monitor(configuration, limits: .init(silence: 60_000, total: 1500))
        monitor.readNow()
        XCTAssertEqual(monitor.report.state, .nominal)
        bmc.freeze()
        let began = MonotonicTime.now
        startThread("reading") { monitor.readNow() }
        let helper = try XCTUnwrap(waitForHelper(), "no helper process")
        let traces = ["cmdline", "environ"].map { (try? kernelText("/proc/\(helper)/\($0)")) ?? "" }
        XCTAssertTrue(traces[0].contains("worker\0bmc"), traces[0])
        XCTAssertFalse(traces.contains { $0.contains(SimulatedBMC.password) })
        let asked = MonotonicTime.now
        XCTAssertEqual(monitor.report.sensors.count, SimulatedBMC.sensorCount)
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: asked), 500)

        XCTAssertTrue(monitor.wait(readings: 2, until: .now.adding(milliseconds: 10_000)))
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: began), 8000)
        XCTAssertTrue(monitor.report.bmc?.problem?.message.contains("could not be read within 1 s") == true, "\(String(describing: monitor.report.bmc?.problem))")
        XCTAssertNotEqual(kill(helper, 0), 0, "the helper is gone")
        bmc.thaw()
        monitor.readNow()
        XCTAssertEqual(monitor.report.state, .nominal)
    }

    private func waitForHelper() -> pid_t? {
        let deadline = MonotonicTime.now.adding(milliseconds: 1000)
        while deadline > .now {
            for entry in (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? [] {
                guard let pid = pid_t(entry), let status = try? kernelText("/proc/\(pid)/status"), status.contains("PPid:\t\(getpid())\n"),
                      let words = try? kernelText("/proc/\(pid)/cmdline"), words.contains("worker\0bmc") else { continue }
                return pid
            }
            usleep(5000)
        }
        return nil
    }

    // MARK: doctor

    func testDoctor() throws {
        let bmc = try SimulatedBMC(in: folder.path)
        let configuration = try folder.configuration(port: bmc.port)
        let reader = BMCReader(configuration, executable: builtExecutable, limits: .init(silence: 1000, total: 10_000))
        let good = BMCCheck.finding(configuration, reader)
        XCTAssertEqual(good.verdict, .ok)
        XCTAssertTrue(good.detail.hasPrefix("127.0.0.1:\(bmc.port): \(SimulatedBMC.sensorCount) sensors, 0 events logged, read in "), good.detail)
        try bmc.set(.fan, raw: 0)
        let bad = BMCCheck.finding(configuration, reader)
        XCTAssertEqual(bad.verdict, .warning)
        XCTAssertTrue(bad.detail.contains("; Fan 1: "), bad.detail)
        bmc.stop()
        let gone = BMCCheck.finding(configuration, reader)
        XCTAssertEqual(gone.verdict, .warning)
        XCTAssertTrue(gone.detail.contains("does not answer"), gone.detail)
        XCTAssertEqual(BMCCheck.findings(ServiceConfiguration(environment: [:])).count, 0)
    }
}
