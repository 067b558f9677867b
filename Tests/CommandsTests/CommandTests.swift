import Foundation
import Platform
import XCTest
@testable import Commands
@testable import ControlProtocol

/// Commands against a service on a real socket.
final class CommandTests: XCTestCase {
    private func run(_ answer: ControlResponse, _ words: String..., terminal: Bool = false, environment: [String: String] = ["TERM": "xterm"]) throws -> Outcome {
        try run([answer], words, terminal: terminal, environment: environment)
    }

    private func run(_ answers: [ControlResponse], _ words: [String], terminal: Bool = false, environment: [String: String] = ["TERM": "xterm"]) throws -> Outcome {
        let service = try FakeService(answers)
        let harness = Harness()
        harness.isTerminal = terminal
        harness.environment = environment
        return harness.run(words + ["--socket", service.path])
    }

    func testDataAndMessagesKeepApart() throws {
        let outcome = try run([ControlResponse(progress: .init("Copying")), ControlResponse(done: "web1 is protected")], ["protect", "web1", "--to", "b"])
        XCTAssertEqual(outcome.code, 0)
        XCTAssertEqual(outcome.out, "web1 is protected\n")
        XCTAssertEqual(outcome.err, "Copying\n")
        let quiet = try run([ControlResponse(progress: .init("Copying")), ControlResponse(done: "web1 is protected")], ["-q", "protect", "web1", "--to", "b"])
        XCTAssertEqual(quiet.out + quiet.err, "")
    }

    func testRefusals() throws {
        let refusal = ControlResponse(failure: ControlFailure("Domain 'web1' has a writable disk", advice: "Use --without-disks, or wait for the next version"))
        for words in [["status"], ["protect", "web1", "--to", "b"], ["unprotect", "web1"], ["swap", "web1"], ["failover", "web1"], ["doctor"]] {
            let outcome = try run([refusal], words)
            XCTAssertEqual(outcome.code, 1)
            XCTAssertEqual(outcome.out, "")
            XCTAssertEqual(outcome.err, "error: Domain 'web1' has a writable disk\n  Use --without-disks, or wait for the next version\n")
        }
        let json = try run([refusal], ["swap", "web1", "--format", "json"])
        XCTAssertEqual(json.code, 1)
        XCTAssertTrue(json.out.contains("\"failure\" : {") && json.out.contains("\"schema\" : 1"), json.out)
        XCTAssertTrue(json.err.hasPrefix("error: Domain 'web1'"))
    }

    func testAnAnswerToSomethingElse() throws {
        for words in [["status"], ["protect", "web1", "--to", "b"], ["swap", "web1"], ["doctor"]] {
            let answer = words == ["status"] || words == ["doctor"] ? ControlResponse(done: "x") : ControlResponse(status: Samples.status([]))
            let outcome = try run([answer], words)
            XCTAssertEqual(outcome.code, 1)
            XCTAssertTrue(outcome.err.contains("lacks what was asked for"), outcome.err)
        }
    }

    func testServiceThatDoesNotRun() {
        let outcome = Harness().run("--socket", "/nonexistent/x.sock", "status")
        XCTAssertEqual(outcome.code, 1)
        XCTAssertEqual(outcome.err, "error: Cannot reach the service at /nonexistent/x.sock: is it running? Start it with `systemctl start shadow-virt`\n")
    }

    func testStatusExitCodes() throws {
        let healthy = ControlResponse(status: Samples.status([Samples.domain()]))
        let ill = ControlResponse(status: Samples.status([Samples.domain(), Samples.domain("x", .primary, .degraded)]))
        XCTAssertEqual(try run(healthy, "status", "--check").code, 0)
        XCTAssertEqual(try run(ill, "status", "--check").code, 2)
        XCTAssertEqual(try run(ill, "status").code, 0)
        let none = ControlResponse(status: Samples.status([]))
        let outcome = try run(none, "status", "--check")
        XCTAssertEqual([outcome.out, outcome.err], ["", "No domain is protected on a\n"])
        XCTAssertEqual(outcome.code, 0)
        XCTAssertEqual(try run(none, "status", "-q").err, "")
        XCTAssertEqual(try run(none, "status", "web1").code, 1)
        XCTAssertTrue(try run(none, "status", "--format", "json").out.contains("\"domains\" : ["))
    }

    func testDrain() throws {
        func answer(draining: Bool, cancelled: Bool = false, _ steps: [DrainReport.Step] = []) -> ControlResponse {
            var response = ControlResponse()
            response.drain = DrainReport(host: "a", isDraining: draining, wasCancelled: cancelled, steps: steps)
            return response
        }
        // Whether the host takes shadows is said as it is, whatever was asked.
        let cases: [(words: [String], draining: Bool, said: String)] = [
            (["drain"], true, "Nothing runs on a. a takes no shadows until `shadow-virt undrain`\n"),
            (["drain", "--dry-run"], false, "Nothing runs on a. a takes shadows\n"),
            (["undrain", "--dry-run"], true, "Nothing left a by a drain. a takes no shadows until `shadow-virt undrain`\n"),
            (["undrain"], false, "Nothing left a by a drain. a takes shadows\n"),
        ]
        for (words, draining, said) in cases {
            let outcome = try run([answer(draining: draining)], words)
            XCTAssertEqual([outcome.out, outcome.err], ["", said], "\(words)")
            XCTAssertEqual(outcome.code, 0)
        }
        let moved = DrainReport.Step("web1", .primary, .moved, host: "b", detail: "swapped to b, outage 20 ms")
        let waiting = DrainReport.Step("web2", .primary, .notTried, detail: "The drain was ended before")
        let cancelled = try run([answer(draining: true, cancelled: true, [moved, waiting])], ["drain"])
        XCTAssertEqual(cancelled.code, ExitCode.interrupted)
        XCTAssertTrue(cancelled.out.contains("web2    primary  not_tried  -"), cancelled.out)
        XCTAssertEqual(cancelled.err, "a takes no shadows until `shadow-virt undrain`\n")
        let failed = DrainReport.Step("web3", .primary, .failed, detail: "It stays: no host")
        XCTAssertEqual(try run([answer(draining: true, [moved, failed])], ["drain"]).code, ExitCode.found)
    }

    func testStatusOfADrainedHost() throws {
        var report = Samples.status([Samples.domain()])
        XCTAssertFalse(try run([ControlResponse(status: report)], ["status", "--format", "json"]).out.contains("draining"))
        report.isDraining = true
        let outcome = try run([ControlResponse(status: report)], ["status"])
        XCTAssertEqual(outcome.err, "a is drained: it takes no shadows until `shadow-virt undrain`\n")
        XCTAssertTrue(try run([ControlResponse(status: report)], ["status", "--format", "json"]).out.contains("\"draining\" : true"))
    }

    func testDoctorExitCodes() throws {
        let outcome = try run(ControlResponse(doctor: Samples.doctor), "doctor", "web1")
        XCTAssertEqual(outcome.code, 2)
        XCTAssertEqual(outcome.err, "3 checks, 1 failed, 1 warning\n")
        XCTAssertEqual(try run(ControlResponse(doctor: DoctorReport(host: "a", domain: nil, findings: [Finding("kvm", .warning, "x")])), "doctor").code, 0)
    }

    func testDoctorWithoutService() throws {
        let harness = Harness()
        harness.hasLocalDoctor = true
        let outcome = harness.run("doctor", "web1", "-c", "test:///default")
        XCTAssertEqual(outcome.code, 0, outcome.err)
        XCTAssertEqual(outcome.out, "ok       kvm  /dev/kvm works\n")
        XCTAssertEqual(harness.localDoctor.last?.1, "test:///default")
        XCTAssertEqual(harness.localDoctor.last?.0.domain, "web1")
        XCTAssertEqual(harness.run("doctor", "-ctest:///default", "--socket", "/x").code, 64)
        let file = "/tmp/shadow-virt-\(getpid())-d.conf"
        defer { unlink(file) }
        try "control_socket = '/nonexistent/x'\nlibvirt_uri = 'test:///conf'".write(toFile: file, atomically: true, encoding: .utf8)
        let fallback = harness.run("doctor", "--config", file)
        XCTAssertEqual(fallback.code, 0)
        XCTAssertTrue(fallback.err.hasPrefix("The service does not run (/nonexistent/x); checking from here\n"), fallback.err)
        XCTAssertEqual(harness.localDoctor.last?.1, "test:///conf")
    }

    func testColourOnTerminalsOnly() throws {
        let answer = ControlResponse(status: Samples.status([Samples.domain()]))
        XCTAssertTrue(try run(answer, "status", terminal: true).out.contains("\u{1B}[32m"))
        XCTAssertFalse(try run(answer, "status", terminal: true, environment: ["TERM": "xterm", "NO_COLOR": "1"]).out.contains("\u{1B}"))
        XCTAssertTrue(try run(answer, "status", terminal: true, environment: ["TERM": "xterm", "NO_COLOR": ""]).out.contains("\u{1B}"))
        XCTAssertFalse(try run(answer, "status", terminal: true, environment: ["TERM": "dumb"]).out.contains("\u{1B}"))
        XCTAssertFalse(try run(answer, "status").out.contains("\u{1B}"))
    }

    func testWritingToStdoutFails() throws {
        let service = try FakeService(ControlResponse(done: "x"))
        let harness = Harness()
        harness.outError = EPIPE
        let closed = harness.run("unprotect", "web1", "--socket", service.path)
        XCTAssertEqual([closed.code, 0], [0, 0])
        XCTAssertEqual(closed.err, "")
        harness.outError = ENOSPC
        let full = harness.run("unprotect", "web1", "--socket", service.path)
        XCTAssertEqual(full.code, 1)
        XCTAssertEqual(full.err, "error: Cannot write to stdout: No space left on device\n")
    }
}

/// The executable itself: what only a process of its own can show.
final class ExecutableTests: XCTestCase {
    private func executable() throws -> URL {
        let product = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent().appendingPathComponent("shadow-virt")
        // xctest bundles on Linux are executables beside the products; elsewhere the bundle tells.
        let candidates = [product, Bundle(for: Self.self).bundleURL.deletingLastPathComponent().appendingPathComponent("shadow-virt")]
        guard let found = candidates.first(where: { FileManager.default.isExecutableFile(atPath: $0.path) }) else {
            throw XCTSkip("no shadow-virt beside the tests: run `swift build` first")
        }
        return found
    }

    private func start(_ words: [String], out: Any? = nil) throws -> (process: Process, out: Pipe, err: Pipe) {
        let process = Process(), stdout = Pipe(), stderr = Pipe()
        process.executableURL = try executable()
        process.arguments = words
        process.standardOutput = out ?? stdout
        process.standardError = stderr
        process.standardInput = FileHandle.nullDevice
        try process.run()
        return (process, stdout, stderr)
    }

    private func text(_ pipe: Pipe) -> String { String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self) }

    func testVersionAndUsage() throws {
        let version = try start(["--version"])
        version.process.waitUntilExit()
        XCTAssertEqual(text(version.out), "shadow-virt \(ProductVersion.text)\n")
        XCTAssertEqual(version.process.terminationStatus, 0)
        let usage = try start(["frobnicate"])
        usage.process.waitUntilExit()
        XCTAssertEqual(usage.process.terminationStatus, 64)
    }

    func testFullDisk() throws {
        let run = try start(["--help"], out: FileHandle(forWritingAtPath: "/dev/full"))
        run.process.waitUntilExit()
        XCTAssertEqual(run.process.terminationStatus, 1)
        XCTAssertEqual(text(run.err), "error: Cannot write to stdout: No space left on device\n")
    }

    func testReaderThatLeft() throws {
        let pipe = Pipe()
        try pipe.fileHandleForReading.close()
        let run = try start(["--help"], out: pipe)
        run.process.waitUntilExit()
        XCTAssertEqual(run.process.terminationReason, .exit)
        XCTAssertEqual(run.process.terminationStatus, 0)
        XCTAssertEqual(text(run.err), "")
    }

    func testInterrupt() throws {
        let path = "/tmp/shadow-virt-\(UUID().uuidString.prefix(8)).sock"
        defer { unlink(path) }
        let listener = try ControlSocket.listen(path: path)
        let run = try start(["protect", "web1", "--to", "b", "--socket", path])
        guard let client = try acceptConnection(listener.raw, until: .now.adding(milliseconds: 10000)) else { return XCTFail("no client") }
        let channel = LineChannel(client)
        // The handler is in place before the request is sent.
        XCTAssertNotNil(try channel.readLine(deadline: .now.adding(milliseconds: 10000)))
        kill(run.process.processIdentifier, SIGINT)
        run.process.waitUntilExit()
        XCTAssertEqual(run.process.terminationReason, .exit)
        XCTAssertEqual(run.process.terminationStatus, 130)
        XCTAssertEqual(text(run.err), "Interrupted. The first copy goes on in the background: `shadow-virt status web1` shows it, `shadow-virt unprotect web1` ends it\n")
        XCTAssertEqual(text(run.out), "")
    }
}
