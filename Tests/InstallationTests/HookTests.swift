import ControlProtocol
import Foundation
import Glibc
import Platform
import XCTest
@testable import Commands

/// `hooks/50-shadow-virt` as libvirt runs it, over every call of https://libvirt.org/hooks.html, with a service in every state.
final class HookTests: XCTestCase {
    /// OPERATION SUB-OPERATION EXTRA, as the documentation lists them.
    private static let calls: [[String]] = [
        ["prepare", "begin", "-"], ["start", "begin", "-"], ["started", "begin", "-"], ["stopped", "end", "-"], ["release", "end", "-"],
        ["migrate", "begin", "-"], ["restore", "begin", "-"], ["reconnect", "begin", "-"], ["attach", "begin", "-"],
    ] + ["unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "daemon"].map { ["release", "end", $0] }
    /// The rule, and what a machine that is busy with other things may add.
    private static let limitMs = 100.0, busyLimitMs = 3000.0

    private static let xml = "<domain type='kvm' id='7'>\n  <name>w\u{e9}b \"1\"</name>\n" + String(repeating: "  <disk/>\n", count: 400) + "</domain>\n"

    private var folder: TemporaryFolder!
    private var times: [Double] = []

    override func setUpWithError() throws {
        folder = try TemporaryFolder()
        times = []
        // A hook that was killed closes its standard input before all of it was written.
        signal(SIGPIPE, SIG_IGN)
    }

    override func tearDown() { folder = nil }

    private var socket: String { folder.path + "/s" }

    /// The hook, with the program under test in place of /usr/bin/shadow-virt.
    private func script(program: String = Product.program) throws -> String {
        let text = try String(contentsOfFile: Product.repository + "/hooks/50-shadow-virt", encoding: .utf8)
        XCTAssertTrue(text.contains("program=\(InstallationLayout.programInTexts)\n"))
        return try folder.write(text.replacing("program=\(InstallationLayout.programInTexts)\n", with: "program=\(program)\n"), to: "hook", mode: 0o755)
    }

    /// One call: everything that libvirt relies on.
    @discardableResult
    private func call(_ hook: String, _ arguments: [String], input: Int32? = nil, before: [String] = [], line: UInt = #line) throws -> Ending {
        let mark = "HOOK-\(UUID().uuidString)"
        let ending = try execute(before + [hook] + arguments, input: input, environment: ["HOOK_MARK": mark, "SHADOW_VIRT_HOOK_SOCKET": socket])
        XCTAssertEqual(ending.status, 0, "\(arguments): \(ending)", line: line)
        XCTAssertEqual(ending.out, "", "\(arguments)", line: line)
        XCTAssertEqual(ending.err, "", "\(arguments)", line: line)
        XCTAssertEqual(processes(with: mark), [], "\(arguments) left processes behind", line: line)
        XCTAssertLessThan(ending.milliseconds, Self.busyLimitMs, "\(arguments)", line: line)
        times.append(ending.milliseconds)
        return ending
    }

    private func processes(with mark: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []).filter { entry in
            guard pid_t(entry) != nil, let text = FileManager.default.contents(atPath: "/proc/\(entry)/environ") else { return false }
            return text.range(of: Data(mark.utf8)) != nil
        }
    }

    /// All calls, each with the XML on standard input, which libvirt has written to a pipe.
    private func allCalls(_ state: String) throws {
        let hook = try script()
        for arguments in Self.calls { try withInput(Self.xml) { try call(hook, ["web1"] + arguments, input: $0) } }
        report(state)
    }

    /// For the eye: the rule holds where the machine has time.
    private func report(_ state: String) {
        var bare: [Double] = []
        for _ in 0..<9 { bare.append((try? execute(["sh", "-c", "timeout 1 true; exit 0"]).milliseconds) ?? 0) }
        func shown(_ value: Double) -> String { String(format: "%.0f", value) }
        let sorted = times.sorted(), median = sorted[sorted.count / 2]
        print("MEASURED hook, service \(state): \(times.count) calls, median \(shown(median)) ms, max \(shown(sorted.last ?? 0)) ms of \(shown(Self.limitMs)); "
            + "a shell that starts two programs: median \(shown(bare.sorted()[4])) ms, max \(shown(bare.max() ?? 0)) ms")
    }

    @discardableResult
    private func withInput<R>(_ text: String, _ body: (Int32) throws -> R) throws -> R {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { throw SystemError("pipe") }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        let reader = Descriptor(owning: ends[0])
        let number = ends[1], bytes = Array(text.utf8)
        startThread("input") {
            let writer = Descriptor(owning: number)
            var done = 0
            while done < bytes.count {
                let count = bytes.withUnsafeBytes { write(writer.raw, $0.baseAddress.map { $0 + done }, bytes.count - done) }
                guard count > 0 else { return }
                done += count
            }
        }
        return try body(reader.raw)
    }

    // MARK: The service's states

    func testServiceUp() throws {
        let listener = HookListener(try ControlSocket.listen(path: socket))
        defer { listener.stop() }
        try allCalls("up")
        let expected = Self.calls.map { words in
            HookCall(domain: "web1", operation: HookCall.Operation(rawValue: words[0])!, subOperation: words[1], extra: words[2] == "-" ? nil : words[2], xml: Self.xml)
        }
        try waitUntil("all calls have come") { listener.calls.count >= expected.count }
        XCTAssertEqual(listener.calls, expected)
        XCTAssertEqual(Set(expected.map(\.operation)), Set(HookCall.Operation.allCases), "an operation is missing above")
    }

    func testServiceDown() throws { try allCalls("down") }

    func testServiceDied() throws {
        // Its socket is still there.
        _ = try ControlSocket.listen(path: socket)
        try allCalls("died")
    }

    func testServiceAcceptsNobody() throws {
        let listener = try ControlSocket.listen(path: socket)
        defer { withExtendedLifetime(listener.raw) {} }
        try allCalls("hanging")
        // More than the socket holds: nobody reads it.
        let hook = try script()
        try withInput(String(repeating: "x", count: HookCall.xmlCeiling)) { try call(hook, ["web1", "reconnect", "begin", "-"], input: $0) }
    }

    func testServiceReadsNothing() throws {
        let listener = HookListener(try ControlSocket.listen(path: socket), reads: false)
        defer { listener.stop() }
        let hook = try script()
        for operation in ["prepare", "reconnect", "migrate"] {
            try withInput(String(repeating: "x", count: HookCall.xmlCeiling)) { try call(hook, ["web1", operation, "begin", "-"], input: $0) }
        }
        report("accepting, never reading")
    }

    func testServicesQueueIsFull() throws {
        let listener = try ControlSocket.listen(path: socket, backlog: 0)
        defer { withExtendedLifetime(listener.raw) {} }
        var waiting: [Int32] = []
        defer { waiting.forEach { close($0) } }
        while let client = try? ControlSocket.connect(path: socket, deadline: .now) { waiting.append(client.release()) }
        XCTAssertGreaterThan(waiting.count, 0)
        let hook = try script()
        for operation in ["start", "reconnect", "migrate"] { try withInput(Self.xml) { try call(hook, ["web1", operation, "begin", "-"], input: $0) } }
        report("with a full queue")
    }

    func testServiceForbidden() throws {
        let listener = try ControlSocket.listen(path: socket, mode: 0o600)
        defer { withExtendedLifetime(listener.raw) {} }
        let hook = try script()
        var before: [String] = []
        if geteuid() == 0 {
            try skipUnlessInstalled("setpriv", package: "util-linux")
            try XCTSkipUnless(try execute(["setpriv", "--reuid=65534", "--clear-groups", "test", "-x", Product.program]).status == 0, "nobody may not run \(Product.program)")
            before = ["setpriv", "--reuid=65534", "--clear-groups"]
        } else {
            chmod(socket, 0)
        }
        for operation in ["prepare", "reconnect"] { try withInput(Self.xml) { try call(hook, ["web1", operation, "begin", "-"], input: $0, before: before) } }
        report("forbidden")
    }

    func testServiceRefuses() throws {
        let listener = HookListener(try ControlSocket.listen(path: socket), reads: true, answer: ControlResponse(failure: ControlFailure("Not now")))
        defer { listener.stop() }
        let hook = try script()
        for operation in ["stopped", "reconnect"] { try withInput(Self.xml) { try call(hook, ["web1", operation, "begin", "-"], input: $0) } }
        // Not a socket at all.
        unlink(socket)
        _ = try folder.write("", to: "s")
        try call(hook, ["web1", "reconnect", "begin", "-"])
        unlink(socket)
        mkdir(socket, 0o755)
        try call(hook, ["web1", "reconnect", "begin", "-"])
    }

    func testProgramIsMissingOrHangs() throws {
        try call(try script(program: folder.path + "/nothing"), ["web1", "reconnect", "begin", "-"])
        // A loader, a disk that never answers: the script has the last word.
        let hanging = try folder.write("#!/bin/sh\nexec sleep 60\n", to: "hanging", mode: 0o755)
        let ending = try call(try script(program: hanging), ["web1", "reconnect", "begin", "-"])
        XCTAssertLessThan(ending.milliseconds, 2500)
        let failing = try folder.write("#!/bin/sh\necho noise; echo noise >&2; exit 1\n", to: "failing", mode: 0o755)
        try call(try script(program: failing), ["web1", "migrate", "begin", "-"])
    }

    // MARK: Standard input and arguments

    func testEveryInput() throws {
        let listener = HookListener(try ControlSocket.listen(path: socket))
        defer { listener.stop() }
        let hook = try script(), words = ["start", "begin", "-"]
        try call(hook, ["none"] + words)
        try call(hook, ["closed"] + words, input: -1)
        try withInput("") { try call(hook, ["empty"] + words, input: $0) }
        try withInput(String(repeating: "x", count: HookCall.xmlCeiling)) { try call(hook, ["most"] + words, input: $0) }
        try withInput(String(repeating: "x", count: HookCall.xmlCeiling + 1)) { try call(hook, ["more"] + words, input: $0) }
        let file = try folder.write(Self.xml, to: "xml")
        let opened = try Descriptor(checking: open(file, O_RDONLY | O_CLOEXEC), "open", file)
        try call(hook, ["file"] + words, input: opened.raw)
        // A pipe that nobody closes and nobody writes to.
        var ends: [Int32] = [0, 0]
        XCTAssertEqual(pipe(&ends), 0)
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        try call(hook, ["endless"] + words, input: ends[0])
        ends.forEach { close($0) }
        // No text.
        let bytes = folder.path + "/bytes"
        try Data([0x3C, 0xFF, 0xFE, 0x00]).write(to: URL(fileURLWithPath: bytes))
        let binary = try Descriptor(checking: open(bytes, O_RDONLY | O_CLOEXEC), "open", bytes)
        try call(hook, ["binary"] + words, input: binary.raw)

        let names = ["none", "closed", "empty", "most", "more", "file", "endless", "binary"]
        try? waitUntil("all calls have come") { listener.calls.count >= names.count }
        XCTAssertEqual(listener.calls.map(\.domain), names)
        XCTAssertEqual(listener.calls.map { $0.xml?.utf8.count }, [nil, nil, nil, HookCall.xmlCeiling, nil, Self.xml.utf8.count, nil, nil])
    }

    func testEveryArgument() throws {
        let listener = HookListener(try ControlSocket.listen(path: socket))
        defer { listener.stop() }
        let hook = try script()
        for arguments in [[], ["web1"], ["-", "start", "begin", "-"], ["web1", "levitate", "begin", "-"], ["", "start"], ["--help"], ["web1", ""]] { try call(hook, arguments) }
        let names = ["--help", "a b", "$(reboot)", "`id`", "'\"", "w\u{e9}b\u{1F30A}", "line\nend", String(repeating: "n", count: 4000), "*"]
        for name in names { try call(hook, [name, "start", "begin", "-"]) }
        try call(hook, ["web1", "start"])
        try waitUntil("all calls have come") { listener.calls.count > names.count }
        XCTAssertEqual(listener.calls, names.map { HookCall(domain: $0, operation: .start, subOperation: "begin") } + [HookCall(domain: "web1", operation: .start)])
    }
}

/// Somebody at the control socket who remembers the calls.
final class HookListener: Sendable {
    private let seen = Guarded<[HookCall]>([])
    private let kept = Guarded<[Int32]>([])
    private let listener: Int32
    var calls: [HookCall] { seen.read { $0 } }

    /// `reads` false: accepts, and keeps the connection without a look at it.
    init(_ descriptor: consuming Descriptor, reads: Bool = true, answer: ControlResponse? = nil) {
        listener = descriptor.release()
        startThread("listener") { [listener, seen, kept] in
            while let client = try? acceptConnection(listener, until: nil) {
                guard reads else {
                    let number = client.release()
                    kept.change { $0.append(number) }
                    continue
                }
                let channel = LineChannel(client)
                guard let line = try? channel.readLine(deadline: .now.adding(milliseconds: 5000)),
                      let request = try? ControlCodec.decode(ControlRequest.self, from: line), request.verb == .hook, let call = request.hook else { continue }
                seen.change { $0.append(call) }
                if let answer, let bytes = try? ControlCodec.encode(answer) { try? channel.writeLine(bytes, deadline: .now.adding(milliseconds: 1000)) }
            }
        }
    }

    func stop() {
        shutdown(listener, Int32(SHUT_RDWR))
        kept.read { $0.forEach { close($0) } }
    }
}
