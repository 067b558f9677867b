import XCTest
@testable import Commands
@testable import Configuration
@testable import ControlProtocol

final class ArgumentTests: XCTestCase {
    /// Command lines that make no sense, and what is said about them.
    func testUsageErrors() {
        let cases: [(line: String, message: String, help: String)] = [
            ("", "Missing COMMAND", ""),
            ("portect web1", "Unknown command 'portect': did you mean 'protect'?", ""),
            ("xyzzy", "Unknown command 'xyzzy'", ""),
            ("source", "Unknown command 'source'", ""),
            ("--verion", "Unknown option '--verion' before the command: did you mean '--version'?", ""),
            ("-x status", "Unknown option '-x' before the command", ""),
            ("--version status", "Option '--version' stands alone", ""),
            ("status --version", "Unknown option '--version'", "status "),
            ("protect", "Missing DOMAIN", "protect "),
            ("protect web1 --to", "Option '--to' needs a value: HOST", "protect "),
            ("policy web1", "Missing get|set|clear", "policy "),
            ("policy web1 put", "Unknown action 'put': use get, set or clear", "policy "),
            ("policy set web1 --off", "The domain comes first: policy web1 set", "policy "),
            ("policy web1 set", "Nothing to set: give an option, or --file", "policy "),
            ("policy web1 get --off", "Option '--off' is for set", "policy "),
            ("policy web1 clear --file x", "Option '--file' is for set", "policy "),
            ("policy web1 set --file x --off", "Options '--file' and '--off' exclude each other", "policy "),
            ("placement", "Missing DOMAIN", "placement "),
            ("drain a b", "Unexpected word 'b' after HOST", "drain "),
            ("protect web1 --to --interval 20ms", "Option '--to' needs a value: HOST", "protect "),
            ("protect web1 --to=", "Option '--to' needs a value: HOST", "protect "),
            ("protect web1 --to b --pool x --pool y", "Option '--pool' is given twice", "protect "),
            ("protect web1 --to b --to b:5", "Option '--to': host b is named twice", "protect "),
            ("protect web1 b --to b", "Unexpected word 'b' after DOMAIN", "protect "),
            ("protect web1 --to b --intervall 20ms", "Unknown option '--intervall': did you mean '--interval'?", "protect "),
            ("protect web1 --to b --interval 1ms", "Option '--interval': Interval '1ms' is out of range: use 5ms to 1h", "protect "),
            ("protect web1 --to b --interval soon", "Option '--interval': 'soon' is no interval: use for instance 20ms, 0.5s or 1s", "protect "),
            ("protect web1 --to b --no-wait=yes", "Option '--no-wait' takes no value", "protect "),
            ("protect web1 --to b -c qemu:///system", "Unknown option '-c'", "protect "),
            ("protect web1 --to b --disk-rate 1", "Option '--disk-rate': Rate '1' is out of range: use 64KiB/s to 1024GiB/s", "protect "),
            ("protect web1 --to b --disk-rate 5MB", "Option '--disk-rate': '5MB' is no rate: use for instance 50MiB/s or 1GiB/s", "protect "),
            ("protect web1 --to b --on-failure reboot", "Option '--on-failure': 'reboot' is neither restart nor none", "protect "),
            ("protect web1 --to b --pool=", "Option '--pool' needs a value: NAME", "protect "),
            ("protect web1 --to b --without-disks --pool p", "Options '--without-disks' and '--pool' exclude each other", "protect "),
            ("protect web1 --to b --without-disks --discard-stale", "Options '--without-disks' and '--discard-stale' exclude each other", "protect "),
            ("unprotect web1 --discard-stale", "Unknown option '--discard-stale'", "unprotect "),
            ("protect web1 --to b --force", "Unknown option '--force'", "protect "),
            ("unprotect", "Missing DOMAIN", "unprotect "),
            ("status web1 web2", "Unexpected word 'web2' after DOMAIN", "status "),
            ("status --format xml", "Unknown format 'xml': use table or json", "status "),
            ("status --format", "Option '--format' needs a value: table|json", "status "),
            ("status --config a --socket b", "Options '--socket' and '--config' exclude each other: the socket is all that is read from the file", "status "),
            ("swap", "Missing DOMAIN", "swap "),
            ("failover web1 --froce", "Unknown option '--froce': did you mean '--force'?", "failover "),
            ("failover -qf web1", "Unknown option '-f'", "failover "),
            ("serve now", "Unexpected word 'now'", "serve "),
            ("serve --format json", "Unknown option '--format'", "serve "),
            ("--format json serve", "Unknown option '--format'", "serve "),
            ("serve -q", "Unknown option '-q'", "serve "),
            ("doctor --connect qemu:///system", "Unknown option '--connect'", "doctor "),
            ("help nonsense", "Unknown command 'nonsense'", ""),
            ("help protect swap", "Unexpected word 'swap' after COMMAND", "help "),
        ]
        let harness = Harness()
        for (line, message, help) in cases {
            let outcome = harness.run(line.split(separator: " ").map(String.init))
            XCTAssertEqual(outcome.code, 64, line)
            XCTAssertEqual(outcome.err, "error: \(message)\nTry 'shadow-virt \(help)--help'\n", line)
            XCTAssertEqual(outcome.out, "", line)
        }
        for domain in ["", "a\nb", "\u{1B}[2J"] {
            XCTAssertEqual(harness.run("status", domain).err.components(separatedBy: "\n")[0], "error: DOMAIN is empty or holds a control character")
        }
    }

    /// Command lines, and the request that the service gets for them.
    func testRequests() throws {
        let cases: [(line: String, request: String)] = [
            ("status", #"{"verb":"status"}"#),
            ("status web1", #"{"domain":"web1","verb":"status"}"#),
            ("-q status web1", #"{"domain":"web1","verb":"status"}"#),
            ("--format json -q status", #"{"verb":"status"}"#),
            ("--format=json status -- -odd", #"{"domain":"-odd","verb":"status"}"#),
            ("protect web1 --to b", #"{"domain":"web1","to":"b","verb":"protect","wait":true,"without_disks":false}"#),
            ("protect --interval=0.5s --to=b web1 --no-wait", #"{"domain":"web1","interval_ms":500,"to":"b","verb":"protect","wait":false,"without_disks":false}"#),
            ("protect --without-disks --interval 20 web1 --to b", #"{"domain":"web1","interval_ms":20,"to":"b","verb":"protect","wait":true,"without_disks":true}"#),
            ("protect web1 --to b --pool fast --disk-rate 50MiB/s --discard-stale --on-failure restart",
             #"{"discard_stale":true,"disk_rate_bytes_per_second":52428800,"domain":"web1","on_failure":"restart","pool":"fast","to":"b","verb":"protect","wait":true,"without_disks":false}"#),
            ("protect web1 --to b --on-failure none --without-disks", #"{"domain":"web1","on_failure":"none","to":"b","verb":"protect","wait":true,"without_disks":true}"#),
            ("unprotect 3 --delete-replica", #"{"delete_replica":true,"domain":"3","verb":"unprotect"}"#),
            ("unprotect 3", #"{"domain":"3","verb":"unprotect"}"#),
            ("swap web1", #"{"domain":"web1","verb":"swap"}"#),
            ("failover web1", #"{"domain":"web1","force":false,"verb":"failover"}"#),
            ("failover web1 --force", #"{"domain":"web1","force":true,"verb":"failover"}"#),
            ("doctor", #"{"verb":"doctor"}"#),
            ("doctor web1 --to b", #"{"domain":"web1","to":"b","verb":"doctor"}"#),
        ]
        let service = try FakeService(ControlResponse(status: Samples.status([Samples.domain()]), handover: Samples.handover,
                                                      doctor: DoctorReport(host: "a", domain: nil, findings: []), done: "Done"))
        let harness = Harness()
        for (line, request) in cases {
            let outcome = harness.run(["--socket", service.path] + line.split(separator: " ").map(String.init))
            XCTAssertEqual(outcome.code, 0, "\(line): \(outcome.err)")
            XCTAssertEqual(service.requests.last, request, line)
        }
        XCTAssertEqual(service.requests.count, cases.count)
    }

    func testHelpWinsOverErrors() {
        let harness = Harness()
        for line in [["protect", "--help"], ["protect", "--nonsense", "-h"], ["--help", "protect"], ["-q", "protect", "--to", "--help"]] {
            let outcome = harness.run(line)
            XCTAssertEqual(outcome.code, 0)
            XCTAssertTrue(outcome.out.hasPrefix("NAME\n    shadow-virt protect - "), "\(line): \(outcome)")
            XCTAssertEqual(outcome.err, "")
        }
        XCTAssertEqual(harness.run("help").out, harness.run("--help").out)
        XCTAssertEqual(harness.run("help", "swap").out, harness.run("swap", "--help").out)
        XCTAssertEqual(harness.run("--version").out, "shadow-virt \(ProductVersion.text)\n")
        // Behind "--" it is a domain's name.
        XCTAssertEqual(harness.run("--socket", "/nonexistent", "status", "--", "--help").code, 1)
    }

    func testHiddenWorkerGetsItsWordsAsTheyAre() {
        let harness = Harness()
        let outcome = harness.run("worker", "source", "--help", "-x")
        XCTAssertEqual(outcome.code, 7)
        XCTAssertEqual(harness.worked, [["source", "--help", "-x"]])
        XCTAssertFalse(harness.run("--help").out.contains("worker"))
    }

    func testServe() throws {
        let harness = Harness()
        let file = "/tmp/shadow-virt-\(getpid()).conf"
        defer { unlink(file) }
        try "interval_ms = 50\ncontrol_socket = '/x'".write(toFile: file, atomically: true, encoding: .utf8)
        XCTAssertEqual(harness.run("serve", "--config", file).code, 0)
        XCTAssertEqual(harness.served.last?.0.intervalMs, 50)
        XCTAssertEqual(harness.served.last?.0.controlSocket, "/x")
        XCTAssertEqual(harness.served.last?.1, file)
        XCTAssertEqual(harness.run("serve", "--config", file, "--socket", "/y").code, 0)
        XCTAssertEqual(harness.served.last?.0.controlSocket, "/y")
        let missing = harness.run("serve", "--config", "/nonexistent.conf")
        XCTAssertEqual(missing.code, 1)
        XCTAssertEqual(missing.err, "error: /nonexistent.conf: There is no such file\n  Check the path after --config\n")
        try "interval_m = 50".write(toFile: file, atomically: true, encoding: .utf8)
        let broken = harness.run("serve", "--config", file)
        XCTAssertEqual(broken.code, 1)
        XCTAssertEqual(broken.err, "error: \(file), line 1, column 1: Unknown key 'interval_m'\n  Did you mean 'interval_ms'?\n")
        XCTAssertEqual(harness.served.count, 2)
    }

    func testTheSocketComesFromTheConfiguration() throws {
        let service = try FakeService(ControlResponse(done: "Done"))
        let file = "/tmp/shadow-virt-\(getpid())-s.conf"
        defer { unlink(file) }
        try "control_socket = '\(service.path)'".write(toFile: file, atomically: true, encoding: .utf8)
        XCTAssertEqual(Harness().run("unprotect", "web1", "--config", file).out, "Done\n")
    }

    func testIntervalRangeIsThatOfTheConfiguration() {
        XCTAssertEqual(Interval.continuousRangeMs, Double(ServiceConfiguration.intervalRangeMs.lowerBound)...Double(ServiceConfiguration.intervalRangeMs.upperBound))
    }
}

final class HelpTests: XCTestCase {
    private var specs: [CommandSpec] {
        CommandTable(serve: { _, _ in 0 }, worker: { _ in 0 }, doctor: { _, _ in DoctorReport(host: "", domain: nil, findings: []) }).commands.map(\.spec)
    }

    func testEveryCommandIsExplained() {
        for spec in specs {
            let text = Help.text(spec)
            for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS"] {
                XCTAssertTrue(text.contains("\(heading)\n    "), "\(spec.name): \(heading)")
            }
            XCTAssertTrue(Help.general(specs).contains("    \(spec.name) "), spec.name)
        }
    }

    func testNoLineIsWiderThanATerminal() {
        for text in specs.map(Help.text) + [Help.general(specs)] {
            for line in text.components(separatedBy: "\n") {
                XCTAssertLessThanOrEqual(line.count, 80, line)
                XCTAssertNotEqual(line.last, " ", line)
            }
        }
    }

    /// An example that the parser refuses would be worse than none.
    func testEveryExampleParses() throws {
        for spec in specs {
            for example in spec.examples where example.command.hasPrefix("shadow-virt ") {
                let words = example.command.split(separator: " ").map(String.init).prefix { $0 != "||" && $0 != ">" }
                let command = try XCTUnwrap(specs.first { $0.name == words[1] })
                XCTAssertNoThrow(try ArgumentParser.parse(Array(words.dropFirst(2)), command), example.command)
            }
        }
    }

    func testNoTwoOptionsOfACommandShareAName() {
        for spec in specs {
            XCTAssertEqual(Set(spec.options.map(\.long)).count, spec.options.count, spec.name)
            XCTAssertEqual(Set(spec.options.compactMap(\.short)).count, spec.options.compactMap(\.short).count, spec.name)
        }
    }
}
