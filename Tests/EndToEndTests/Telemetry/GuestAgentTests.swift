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
        let result = try hosts.run(.a, [TwoHosts.binary, "kpi", "--format", "json", "-q", "--since", "2m"] + words, limit: 10)
        // A domain has none before its first look.
        return result.succeeded ? try JSONDecoder().decode(Report.self, from: Data(result.out.utf8)).samples : []
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
