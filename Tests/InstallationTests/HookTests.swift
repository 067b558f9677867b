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
    /// The rule; and what a machine that is busy with other things may make of it, once.
    private static let limitMs = 100.0, busyLimitMs = 3000.0
    /// Of processor time: with the whole of Foundation to load, a call took 27.
    private static let processorLimitMs = 20.0

    private static let xml = "<domain type='kvm' id='7'>\n  <name>w\u{e9}b \"1\"</name>\n" + String(repeating: "  <disk/>\n", count: 400) + "</domain>\n"

    private var folder: TemporaryFolder!
    private var endings: [Ending] = []

    override func setUpWithError() throws {
        folder = try TemporaryFolder()
        endings = []
        _ = try folder.write("# ours\ncontrol_socket = \"\(socket)\"\n", to: "conf")
        // A hook that was killed closes its standard input before all of it was written.
        signal(SIGPIPE, SIG_IGN)
    }

    override func tearDown() { folder = nil }

    private var socket: String { folder.path + "/s" }

    /// The hook, with the program under test in place of the installed one.
    private func script(program: String = Product.hookProgram) throws -> String {
        let text = try String(contentsOfFile: Product.repository + "/hooks/50-shadow-virt", encoding: .utf8)
        XCTAssertTrue(text.contains("program='\(InstallationLayout.hookProgramInTexts)'\n"))
        return try folder.write(text.replacing("'\(InstallationLayout.hookProgramInTexts)'", with: "'\(program)'"), to: "hook", mode: 0o755)
    }

    /// One call: everything that libvirt relies on.
    @discardableResult
    private func call(_ hook: String, _ arguments: [String], input: Int32? = nil, before: [String] = [], configuration: String = "conf",
                      line: UInt = #line) throws -> Ending {
        let mark = "HOOK-\(UUID().uuidString)"
        let ending = try execute(before + [hook] + arguments, input: input, environment: ["HOOK_MARK": mark, "SHADOW_VIRT_HOOK_CONFIG": "\(folder.path)/\(configuration)"])
        XCTAssertEqual(ending.status, 0, "\(arguments): \(ending)", line: line)
        XCTAssertEqual(ending.out, "", "\(arguments)", line: line)
        XCTAssertEqual(ending.err, "", "\(arguments)", line: line)
        XCTAssertEqual(processes(with: mark), [], "\(arguments) left processes behind", line: line)
        XCTAssertLessThan(ending.milliseconds, Self.busyLimitMs, "\(arguments)", line: line)
        endings.append(ending)
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
        try report(state)
    }

    /// The rule. A busy machine takes its time for a shell that starts a program as well: that is no fault of the hook's.
    private func report(_ state: String, line: UInt = #line) throws {
        let bare = try (0..<9).map { _ in try execute(["sh", "-c", "true; /bin/true; exit 0"]) }
        func median(_ endings: [Ending], _ value: (Ending) -> Double) -> Double { endings.map(value).sorted()[endings.count / 2] }
        func shown(_ value: Double) -> String { String(format: "%.1f", value) }
        let time = median(endings, \.milliseconds), bareTime = median(bare, \.milliseconds), processor = median(endings, \.processorMilliseconds)
        print("MEASURED hook, service \(state): \(endings.count) calls, median \(shown(time)) ms, max \(shown(endings.map(\.milliseconds).max() ?? 0)) ms of "
            + "\(shown(Self.limitMs)), \(shown(processor)) ms of processor time; a shell that starts a program: median \(shown(bareTime)) ms, "
            + "\(shown(median(bare, \.processorMilliseconds))) ms of processor time")
        XCTAssertLessThan(time - bareTime, Self.limitMs, state, line: line)
        XCTAssertLessThan(processor, Self.processorLimitMs, state, line: line)
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
        try report("accepting, never reading")
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
        try report("with a full queue")
    }

    func testServiceForbidden() throws {
        let listener = try ControlSocket.listen(path: socket, mode: 0o600)
        defer { withExtendedLifetime(listener.raw) {} }
        let hook = try script()
        var before: [String] = []
        if geteuid() == 0 {
            try skipUnlessInstalled("setpriv", package: "util-linux")
            try XCTSkipUnless(try execute(["setpriv", "--reuid=65534", "--clear-groups", "test", "-x", Product.hookProgram]).status == 0, "nobody may not run \(Product.hookProgram)")
            before = ["setpriv", "--reuid=65534", "--clear-groups"]
        } else {
            chmod(socket, 0)
        }
        for operation in ["prepare", "reconnect"] { try withInput(Self.xml) { try call(hook, ["web1", operation, "begin", "-"], input: $0, before: before) } }
        try report("forbidden")
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

    func testProgramIsMissingOrBroken() throws {
        try call(try script(program: folder.path + "/nothing"), ["web1", "reconnect", "begin", "-"])
        for (name, text) in [("failing", "#!/bin/sh\necho out\necho err >&2\nexit 7\n"), ("crashing", "#!/bin/sh\nkill -SEGV $$\n"),
                             ("nonsense", "\u{7f}ELF"), ("no-interpreter", "#!/nonexistent/sh\n")] {
            let program = try folder.write(text, to: name, mode: 0o755)
            try call(try script(program: program), ["web1", "reconnect", "begin", "-"])
        }
        let data = try folder.write("", to: "data", mode: 0o644)
        try call(try script(program: data), ["web1", "reconnect", "begin", "-"])
    }

    /// A file system that never answers, below the configuration: the kernel ends the program.
    func testConfigurationHangs() throws {
        XCTAssertEqual(mkfifo(folder.path + "/fifo", 0o600), 0)
        let writer = try Descriptor(checking: open(folder.path + "/fifo", O_RDWR | O_CLOEXEC), "open")
        defer { withExtendedLifetime(writer.raw) {} }
        let hook = try script()
        for operation in ["prepare", "start", "reconnect"] { try call(hook, ["web1", operation, "begin", "-"], configuration: "fifo") }
        try report("with a configuration that hangs")
    }

    func testConfigurationIsMissingOrMakesNoSense() throws {
        _ = try folder.write("control_socket = [", to: "broken")
        _ = try folder.write("control_socket = 7\n", to: "number")
        mkdir(folder.path + "/folder", 0o755)
        let hook = try script()
        for configuration in ["nothing", "broken", "number", "folder"] { try call(hook, ["web1", "reconnect", "begin", "-"], configuration: configuration) }
    }

    /// What it has to load is most of what it costs: nothing where the static libraries are there, C's and perhaps Swift's elsewhere (Package.swift).
    func testProgramLoadsNoFoundation() throws {
        let ending = try execute(["ldd", Product.hookProgram])
        if ending.err.contains("not a dynamic executable") { return }
        XCTAssertEqual(ending.status, 0, "\(ending)")
        XCTAssertTrue(ending.out.contains("libc.so"), ending.out)
        XCTAssertFalse(ending.out.contains("Foundation"), ending.out)
    }

    /// Before others that want the processors, with the shell that waits for it; and nobody else.
    func testGoesFirst() throws {
        try XCTSkipUnless(geteuid() == 0, "not root: nobody else may raise a priority")
        XCTAssertEqual(mkfifo(folder.path + "/fifo", 0o600), 0)
        let writer = try Descriptor(checking: open(folder.path + "/fifo", O_RDWR | O_CLOEXEC), "open")
        defer { withExtendedLifetime(writer.raw) {} }
        func priority(_ pid: pid_t) -> Int32 { getpriority(__priority_which_t(PRIO_PROCESS.rawValue), id_t(pid)) }
        /// The highest that `pid` has while it stands at that configuration.
        func highest(_ words: [String], _ more: [String: String] = [:]) throws -> Int32 {
            let environment = ProcessInfo.processInfo.environment.merging(["SHADOW_VIRT_HOOK_CONFIG": folder.path + "/fifo"]) { $1 }.merging(more) { $1 }
            let pid = try start(words + ["web1", "start", "begin", "-"], environment: environment)
            var status: Int32 = 0, best = priority(0)
            while waitpid(pid, &status, WNOHANG) == 0 {
                best = min(best, priority(pid))
                usleep(500)
            }
            XCTAssertEqual(status, 0)
            return best
        }
        let ours = priority(0)
        XCTAssertEqual(try highest([try script()]), -20, "the shell")
        XCTAssertEqual(try highest([Product.hookProgram]), -20, "the program")
        XCTAssertEqual(try highest([Product.hookProgram], ["SHADOW_VIRT_HOOK_SHELL": "\(getppid())"]), -20)
        XCTAssertEqual(priority(0), ours, "who runs the program without the shell")
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
