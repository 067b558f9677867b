import Foundation
import XCTest

/// A real agent in a Linux guest under TCG, not protected.
final class GuestAgentTests: XCTestCase {
    private struct Report: Decodable {
        struct Sample: Decodable {
            var primary: [String: Double]?
            var host: [String: Double]?
        }
        var samples: [Sample]
    }

    private func kpis(_ hosts: TwoHosts, _ words: String...) throws -> [Report.Sample] {
        let result = try hosts.run(.a, [TwoHosts.binary, "kpi", "--format", "json", "-q", "--since", "10m"] + words, limit: 10)
        // A domain has none before its first look.
        return result.succeeded ? try JSONDecoder().decode(Report.self, from: Data(result.out.utf8)).samples : []
    }

    private struct Inside: Decodable {
        struct Process: Decodable { var pid: Int, name: String }
        struct Library: Decodable { var path: String }
        var agent: String?
        var tasks: Int?
        var processes: [Process]?
        var libraries: [Library]?
        var notes: [String]
    }

    private func inside(_ hosts: TwoHosts) throws -> Inside {
        let result = try hosts.run(.a, [TwoHosts.binary, "kpi", "linux", "--inside", "--format", "json", "-q"], limit: 30)
        try require(result.succeeded, "kpi --inside: \(result.summary)")
        return try JSONDecoder().decode(Inside.self, from: Data(result.out.utf8))
    }

    /// On demand; then of an agent that hangs, which holds up none of libvirt's own jobs, and of one that is dead.
    private func lookInside(_ hosts: TwoHosts) throws {
        let whole = try inside(hosts)
        XCTAssertNotNil(whole.agent, "\(whole.notes)")
        XCTAssertEqual(whole.processes?.first { $0.pid == 1 }?.name, "init", "\(whole.notes)")
        XCTAssertTrue(whole.libraries?.contains { $0.path.hasPrefix("/agent/libc.so") } ?? false, "\(whole.libraries?.count ?? -1) libraries; \(whole.notes)")
        XCTAssertTrue(whole.notes.contains { $0.hasPrefix("Errors of the journal: there is no journalctl") }, "\(whole.notes)")
        print(try hosts.shadowVirt(.a, "kpi", "linux", "--inside").out)

        // The parent of what the agent runs is the agent.
        let stop = #"{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","sleep 1; kill -STOP $PPID; sleep 7; kill -KILL $PPID"]}}"#
        try require(try hosts.virsh(.a, "qemu-agent-command", "linux", stop).succeeded, "guest-exec")
        usleep(1_500_000)
        let script = """
            "$1" kpi linux --inside -q & sleep 0.7; begin=$(date +%s%N)
            virsh -q suspend linux >/dev/null && virsh -q resume linux >/dev/null || echo FAILED
            echo "JOBS $((($(date +%s%N) - begin) / 1000000))"; wait
            """
        let both = try hosts.run(.a, ["bash", "-c", script, "both", TwoHosts.binary], limit: 30)
        XCTAssertTrue(both.out.contains("Agent:   none") && both.out.contains("the agent does not answer"), both.summary)
        let jobs = both.out.split(separator: "\n").first { $0.hasPrefix("JOBS ") }.flatMap { Double($0.dropFirst(5)) } ?? 99_999
        print("MEASURED virsh suspend and resume beside an agent that hangs: \(Int(jobs)) ms")
        XCTAssertLessThan(jobs, 1200, "as long as the question to the agent lasted: \(both.summary)")
        XCTAssertFalse(both.out.contains("FAILED"), both.summary)
        try waitUntil("the dead agent is noticed", limit: 20, every: 0.5) { try inside(hosts).notes.contains { $0.hasPrefix("No agent is connected") } }
    }

    func testWhatTheAgentOffersAndAQEMUThatHangs() throws {
        let folder = try LinuxGuest.parts()
        let built = try runCommand([TwoHosts.tests + "/Guests/agent.sh", folder], limit: 120)
        if built.status == 2 { throw XCTSkip("No guest agent: \(built.err.trimmed)") }
        try require(built.succeeded, "agent.sh: \(built.summary)")
        let hosts = try TwoHosts(configuration: ["telemetry_interval = 1"], withLedger: false)
        defer { for left in hosts.down() { XCTFail("Left behind: \(left)") } }
        let made = try runCommand([TwoHosts.tests + "/Guests/linux-domain.sh", "linux", "FOLDER=\(folder)/agent", "TYPE=qemu", "DISK=", "WORDS=rdinit=/agent/init"], limit: 10)
        try require(made.succeeded, made.summary)
        let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>"
        try made.out.replacingOccurrences(of: "</devices>", with: channel).write(toFile: hosts.folder + "/linux.xml", atomically: true, encoding: .utf8)
        let created = try hosts.virsh(.a, "create", hosts.folder + "/linux.xml")
        try require(created.succeeded, "virsh create: \(created.summary)")

        // Nobody is logged in; what is a rate would need a second look, a quarter of a minute later.
        try waitUntil("the agent's KPIs (\(hosts.service(.a).logText.suffix(500)))", limit: 90, every: 0.5) {
            try kpis(hosts, "linux").contains { $0.primary?["guest_users_count"] == 0 }
        }
        let samples = try kpis(hosts, "linux")
        XCTAssertTrue(samples.contains { ($0.primary?["vcpu_time_percent"] ?? 0) > 0 })

        try lookInside(hosts)

        // Its monitor does not answer any more: what needs it is absent, and nothing waits.
        guard let qemu = hosts.qemu(.a, "linux") else { return XCTFail("No QEMU") }
        kill(qemu, SIGSTOP)
        defer { kill(qemu, SIGCONT) }
        let before = try kpis(hosts).count
        try waitUntil("four more samples of the host", limit: 12, every: 0.3) { try kpis(hosts).filter { $0.host?["host_memory_latency_ns"] != nil }.count >= before + 4 }
        kill(qemu, SIGCONT)
        try waitUntil("the guest's KPIs again", limit: 15, every: 0.3) { try kpis(hosts, "linux").suffix(2).contains { $0.primary?["vcpu_time_percent"] != nil } }
    }
}
