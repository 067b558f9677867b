import ControlProtocol
import Foundation
import Libvirt
import Platform
import XCTest
@testable import Telemetry

/// A real agent, and agents that die, hang and lie.
final class GuestAgentTests: XCTestCase {
    private let empty = GuestInside(host: "a", domain: "web1", uuid: "8f8a7c1e-0000-4000-8000-000000000001", time: "2024-05-01T10:00:00.000Z")

    // MARK: A real one

    func testRealAgentsKPIs() throws {
        let real = try RealAgent()
        let agent = GuestAgent(name: "web1"), begin = MonotonicTime.now
        _ = agent.look(real.agentChannel(), begin)
        // The second look has the rates.
        let later = begin.adding(milliseconds: GuestJournal.everyMs + 1)
        let began = MonotonicTime.now
        let values = try XCTUnwrap(agent.look(real.agentChannel(), later))
        print("MEASURED one look of a real agent: \(Int(MonotonicTime.now.milliseconds(since: began))) ms, \(values.count) KPIs")
        for name in ["guest_load_1m", "guest_tasks_count", "guest_tasks_running_count", "guest_tasks_blocked_count", "guest_forks_per_second", "guest_cpu_percent"] {
            XCTAssertNotNil(values[name], "\(name) in \(values.keys.sorted())")
        }
        XCTAssertGreaterThan(values["guest_tasks_count"] ?? 0, 10)
        XCTAssertGreaterThan(values["guest_tasks_running_count"] ?? 0, 0)
    }

    func testRealAgentsInsideByPrograms() throws {
        let real = try RealAgent()
        let inside = InsideLook.look(real.agentChannel(), empty, mayExecute: true)
        check(inside, real)
        XCTAssertGreaterThan(inside.libraries?.first?.processes ?? 0, 1)
    }

    /// The same without guest-exec, from file to file; and what is not offered is a note.
    func testRealAgentsInsideByFiles() throws {
        let real = try RealAgent(without: ["guest-exec", "guest-get-users"])
        let inside = InsideLook.look(real.agentChannel(), empty, mayExecute: true)
        // Who is reached depends on who began whom here: the first process is, always.
        let first = inside.processes?.first { $0.pid == 1 }
        XCTAssertEqual(first?.name, try String(contentsOfFile: "/proc/1/comm", encoding: .utf8).trimmingCharacters(in: .newlines), "\(inside.notes)")
        XCTAssertEqual(first?.parent, 0)
        XCTAssertNotNil(inside.libraries, "\(inside.notes)")
        XCTAssertTrue(inside.notes.contains("Users: the agent offers no guest-get-users"), "\(inside.notes)")
        XCTAssertTrue(inside.notes.contains("Errors of the journal: the agent offers no guest-exec"), "\(inside.notes)")
        XCTAssertEqual(InsideLook.look(real.agentChannel(), empty, mayExecute: false).notes.last, "Errors of the journal: guest_exec is 0 in the configuration")
    }

    private func check(_ inside: GuestInside, _ real: RealAgent, line: UInt = #line) {
        XCTAssertNotNil(inside.agent, "\(inside.notes)", line: line)
        let own = inside.processes?.first { $0.pid == real.pid }
        XCTAssertEqual(own?.name, "qemu-ga", "\(inside.notes)", line: line)
        XCTAssertEqual(own?.parent, Int(getpid()), line: line)
        // Resident pages of some MiB, not of some KiB.
        XCTAssertGreaterThan(own?.residentBytes ?? 0, 1 << 20, line: line)
        XCTAssertTrue(inside.libraries?.contains { $0.path.contains("/libc.so") } ?? false, "\(inside.libraries?.count ?? -1) libraries, \(inside.notes)", line: line)
        XCTAssertGreaterThan(inside.tasks ?? 0, inside.processes?.count ?? .max, "threads count as tasks", line: line)
    }

    /// A library that is replaced while a process has it mapped.
    func testReplacedLibrary() throws {
        let real = try RealAgent()
        let path = "/tmp/sv-agent-lib-\(getpid()).so"
        let places = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"].map { $0 + "/libm.so.6" }
        let library = try XCTUnwrap(places.first { access($0, R_OK) == 0 }, "no libm")
        try Data(contentsOf: URL(fileURLWithPath: library)).write(to: URL(fileURLWithPath: path))
        let handle = try XCTUnwrap(dlopen(path, RTLD_NOW), String(cString: dlerror()))
        defer { dlclose(handle) }
        unlink(path)
        let found = InsideLook.look(real.agentChannel(), empty, mayExecute: true).libraries?.first { $0.path == path }
        XCTAssertEqual(found, GuestInside.Library(path: path, processes: 1, isDeleted: true))
    }

    func testRealAgentThatHangs() throws {
        let real = try RealAgent()
        real.hang()
        let began = MonotonicTime.now
        let inside = InsideLook.look(real.agentChannel(), empty, mayExecute: true)
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: began), 4000, "one question's limit, not one of each")
        XCTAssertNil(inside.agent)
        XCTAssertTrue(inside.notes.first?.contains("the agent does not answer (No answer in time)") ?? false, "\(inside.notes)")
        let agent = GuestAgent(name: "web1")
        XCTAssertNil(agent.look(real.agentChannel(), .now))
        XCTAssertFalse(agent.isDue(MonotonicTime.now.adding(milliseconds: GuestAgent.afterSilenceMs - 5000)), "left alone for a while")
    }

    func testNobodyIsAskedWhileTheGuestChangesHosts() throws {
        let real = try RealAgent()
        var left = 5
        let inside = InsideLook.look(real.agentChannel { left -= 1; return left >= 0 }, empty, mayExecute: true)
        XCTAssertNotNil(inside.agent)
        XCTAssertTrue(inside.notes.last?.contains("the guest changes hosts") ?? false, "\(inside.notes)")
        XCTAssertNil(inside.processes)
        XCTAssertEqual(GuestAgent(name: "web1").look(real.agentChannel { false }, .now), [:])
    }

    func testTimeForAllQuestions() throws {
        let real = try RealAgent(without: ["guest-exec"])
        let inside = InsideLook.look(real.agentChannel(limitMs: 30), empty, mayExecute: true)
        XCTAssertTrue(inside.notes.last?.contains("not within") ?? false, "\(inside.notes)")
    }

    // MARK: One that lies

    /// Answers by command; nil for one that is not among them.
    private func liar(_ answers: [String: String]) -> AgentChannel {
        AgentChannel(limitMs: 15_000, mayAsk: { true }) { json, _ in
            let command = answers.keys.filter { json.contains("\"\($0)\"") }.max { $0.count < $1.count }
            return command.flatMap { answers[$0] } ?? #"{"error": {"class": "CommandNotFound", "desc": "no such command"}}"#
        }
    }

    private static let info = #"{"return": {"version": "9.9", "supported_commands": [{"name": "guest-get-users", "enabled": true}, {"name": "guest-get-fsinfo", "enabled": true},"#
        + #"{"name": "guest-file-open", "enabled": true}, {"name": "guest-file-read", "enabled": true}, {"name": "guest-file-close", "enabled": true},"#
        + #"{"name": "guest-exec", "enabled": true}, {"name": "guest-exec-status", "enabled": true}, {"name": "guest-get-cpustats", "enabled": true}]}}"#

    func testAnswersThatMakeNoSense() throws {
        let nonsense = ["", "nonsense", "{}", "[]", #"{"return": 7}"#, #"{"return": {"count": -1, "buf-b64": "", "eof": true}}"#, #"{"return": {"count": 9, "buf-b64": "AAAA", "eof": false}}"#,
                        #"{"return": {"count": 3, "buf-b64": "!!!", "eof": true}}"#, #"{"return": "\#(String(repeating: "x", count: 2 << 20))"}"#,
                        String(repeating: "[", count: 100_000), #"{"return": [{"user": 5}]}"#, #"{"return": [{"cpu": 0, "user": 18446744073709551615, "idle": 18446744073709551615}]}"#,
                        #"{"return": [{"mountpoint": "/", "used-bytes": -1e308, "total-bytes": 1e-308}]}"#, #"{"error": {"class": "GenericError", "desc": "boom"}}"#]
        for text in nonsense {
            var answers = ["guest-info": Self.info]
            for command in ["guest-get-users", "guest-get-fsinfo", "guest-file-read", "guest-exec", "guest-get-cpustats"] { answers[command] = text }
            answers["guest-file-open"] = #"{"return": 1000}"#
            let agent = GuestAgent(name: "web1")
            let values = try XCTUnwrap(agent.look(liar(answers), .now), String(text.prefix(60)))
            XCTAssertTrue(values.values.allSatisfy(\.isFinite))
            XCTAssertTrue(agent.isDue(MonotonicTime.now.adding(milliseconds: GuestAgent.everyMs)), "it answers, so it goes on being asked")
            let inside = InsideLook.look(liar(answers), empty, mayExecute: true)
            XCTAssertEqual(inside.agent, "9.9", String(text.prefix(60)))
            XCTAssertFalse(inside.notes.isEmpty)
            XCTAssertNoThrow(try ControlCodec.encode(inside))
            // The very first answer is one as well.
            XCTAssertNil(GuestAgent(name: "web1").look(liar(["guest-info": text]), .now))
            XCTAssertNil(InsideLook.look(liar(["guest-info": text]), empty, mayExecute: true).agent)
        }
    }

    /// What it cannot do in this guest it is not asked again, and the rest is there.
    func testACommandThatFailsCostsOnlyItself() throws {
        let users = #"{"return": [{"user": "root", "login-time": 1714557605.25}]}"#
        let agent = GuestAgent(name: "web1")
        let values = agent.look(liar(["guest-info": Self.info, "guest-get-users": users, "guest-get-fsinfo": #"{"error": {"class": "GenericError", "desc": "no /sys"}}"#]), .now)
        XCTAssertEqual(values, ["guest_users_count": 1])
        var asked: [String] = []
        let counting = AgentChannel(limitMs: 1000, mayAsk: { true }) { json, _ in
            asked.append(json)
            return users
        }
        _ = agent.look(counting, .now)
        XCTAssertEqual(asked, [#"{"execute":"guest-get-users"}"#])
    }

    /// A file that never ends, and a program that does not.
    func testWithoutEnd() throws {
        let block = Data(repeating: 0x41, count: 64 << 10).base64EncodedString()
        let endless = liar(["guest-file-open": #"{"return": 1}"#, "guest-file-read": #"{"return": {"count": 65536, "buf-b64": "\#(block)", "eof": false}}"#])
        XCTAssertEqual(try endless.file("/proc/kcore", most: 256 << 10).count, 256 << 10)
        let stubborn = AgentChannel(limitMs: 200, mayAsk: { true }) { json, _ in
            json.contains("guest-exec-status") ? #"{"return": {"exited": false}}"# : #"{"return": {"pid": 7}}"#
        }
        XCTAssertThrowsError(try stubborn.run("sleep 1000")) { XCTAssertEqual($0 as? AgentChannel.Refusal, .late) }
    }

    // MARK: The journal

    func testJournal() throws {
        let lines = "2024-05-01T10:00:00+0000 web1 sshd[7]: error: a\n2024-05-01T10:00:01+0000 web1 kernel: b\n"
        func status(_ output: String, _ code: Int = 0) -> [String: String] {
            ["guest-exec": #"{"return": {"pid": 7}}"#, "guest-exec-status": #"{"return": {"exited": true, "exitcode": \#(code), "out-data": "\#(Data(output.utf8).base64EncodedString())"}}"#]
        }
        var journal = GuestJournal()
        let begin = MonotonicTime.now, minute = begin.adding(milliseconds: 60_000), two = begin.adding(milliseconds: 120_000)
        XCTAssertTrue(journal.isDue(begin))
        XCTAssertNil(try journal.look(liar(status(lines + "-- cursor: s=0ab;i=1f;b=2-3\n")), begin), "what was before says nothing")
        XCTAssertFalse(journal.isDue(begin.adding(milliseconds: 59_000)))
        XCTAssertEqual(try journal.look(liar(status(lines + "-- cursor: s=0ab;i=21\n")), minute), 2.0 / 60)
        XCTAssertEqual(try journal.look(liar(status("")), two), 0)
        XCTAssertEqual(GuestJournal.parse("x\n-- cursor: $(reboot)\n").lines, ["x"])
        XCTAssertNil(GuestJournal.parse("x\n-- cursor: $(reboot)\n").cursor)
        var none = GuestJournal()
        XCTAssertNil(try none.look(liar(status("", 127)), begin))
        XCTAssertFalse(none.isDue(two), "there is none")
        XCTAssertNil(try GuestJournal.last(liar(status("", 127)), 50))
    }
}
