import Foundation
import XCTest

/// A policy asks for two shadows on three hosts: whatever happens to the hosts, the guest has as many as it can have, and never more.
final class MissingShadowTests: FanOutTestCase {
    override class var configuration: [String] { ["shadow_replace_after = 3", "telemetry_interval = 1"] }

    private func withPolicy(_ xml: String, shadows: Int) -> String {
        let element = """
            <metadata><shadow:policy xmlns:shadow='https://shadow-virt.org/domain/1' shadows='\(shadows)'>
              <engine name='continuous' interval='20ms'/><disks copy='none'/></shadow:policy></metadata>
            """
        return xml.replacingOccurrences(of: "<memory unit", with: element + "<memory unit")
    }

    private func lines(_ text: String, since mark: Int) throws -> [Substring] {
        try hosts.service(.a).logText(since: mark).split(separator: "\n").filter { $0.contains(text) }
    }

    private func kinds(_ word: String) throws -> [String] {
        try hosts.shadowVirt(.a, "events", word, "--format", "json").out.split(separator: "\n").compactMap { line in
            (try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])?["kind"] as? String
        }
    }

    func testAShadowThatIsMissingComesByItself() throws {
        let hosts = try hosts
        let guest = try newGuest()
        // Nobody there who could take a shadow: the guest runs without, and gets its first one when there is somebody.
        for host in [Host.b, .c] { try hosts.service(host).stop() }
        let mark = hosts.service(.a).logMark
        try guest.boot(on: .a) { self.withPolicy($0, shadows: 2) }
        try waitUntil("status says why it has none", limit: 20) { try hosts.status(.a, guest.name)?.reason.contains("Next attempt") == true }
        try hosts.service(.b).start()
        try hosts.waitForService(.b)
        try waitForShadows(guest, ["hostB"], limit: 30)
        try waitUntil("one is missing", limit: 10) { try hosts.status(.a, guest.name)?.reason.contains("1 of the 2 shadows") == true }
        let state = try XCTUnwrap(hosts.status(.a, guest.name))
        XCTAssertEqual(state.state, "protected")
        usleep(2_500_000)
        XCTAssertEqual(try lines("1 of the 2 shadows", since: mark).count, 1, "It is said once")

        try hosts.service(.c).start()
        try hosts.waitForService(.c)
        let begin = Clock.seconds
        try waitForShadows(guest, ["hostB", "hostC"], limit: 60)
        report(String(format: "the missing second shadow followed %.1f s after its host was back", Clock.seconds - begin))
        let id = try hosts.virsh(.a, "domid", guest.name).out.trimmed
        for word in [guest.name, id, try hosts.virsh(.a, "domuuid", guest.name).out.trimmed.uppercased()] {
            let kinds = try kinds(word)
            XCTAssertEqual([kinds.filter { $0 == "shadow_missing" }.count, kinds.filter { $0 == "shadow_added" }.count], [1, 1], "\(word): \(kinds)")
        }
        for words in [["status", id], ["policy", id, "get"], ["doctor", id]] {
            let result = try hosts.run(.a, [TwoHosts.binary] + words)
            XCTAssertTrue(result.succeeded, "\(words): \(result.summary)")
        }
        try waitUntil("KPIs of each shadow", limit: 15) {
            let header = try hosts.shadowVirt(.a, "kpi", id, "--format", "csv").out.prefix { $0 != "\n" }
            return ["hostB", "hostC"].allSatisfy { header.contains("p_rpo_ms@\($0)") && header.contains("p_peer_round_trip_ms@\($0)") }
        }
        let top = try hosts.shadowVirt(.a, "top", "--once").out
        print(top)
        XCTAssertEqual(top.split(separator: "\n").filter { $0.contains(" shadow ") && ($0.contains("hostB") || $0.contains("hostC")) }.count, 2, top)
        let metrics = try hosts.run(.a, ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/16521; printf 'GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' >&3; cat <&3"]).out
        for host in ["hostB", "hostC"] { XCTAssertTrue(metrics.contains("shadow_host=\"\(host)\",state=\"protected\"} 1"), metrics) }
        XCTAssertTrue(metrics.contains("shadowvirt_shadows_missing{"), metrics)

        // A host that is drained gets none, however much one is missing; when it is back, it gets one.
        let drained = try hosts.shadowVirt(.c, "drain")
        try require(drained.succeeded, drained.summary)
        try waitUntil("status says that it is drained", limit: 15) { try hosts.status(.a, guest.name)?.reason.contains("hostC: It is being drained") == true }
        try waitForShadows(guest, ["hostB"], limit: 5)
        let back = try hosts.shadowVirt(.c, "undrain")
        try require(back.succeeded, back.summary)
        try waitForShadows(guest, ["hostB", "hostC"], limit: 30)

        // By id as well, and what is taken away by hand stays away.
        let gone = try hosts.shadowVirt(.a, "unprotect", id, "--from", "hostC")
        try require(gone.succeeded, gone.summary)
        usleep(3_000_000)
        try waitForShadows(guest, ["hostB"], limit: 1)

        // Its host is gone for good: another one takes its place, and there is one when it comes back.
        try hosts.service(.b).stop(signal: SIGKILL)
        let lost = Clock.seconds
        try waitUntil("hostC has it (\(hosts.service(.a).logText(since: mark).suffix(1500)))", limit: 60) {
            try hosts.status(.a, guest.name)?.shadows?.contains { $0.peer == "hostC" && $0.state == "protected" } == true
        }
        report(String(format: "a lost shadow was replaced after %.1f s (shadow_replace_after = 3)", Clock.seconds - lost))
        try hosts.service(.b).start()
        try hosts.waitForService(.b)
        try waitForShadows(guest, ["hostC"], limit: 30)
        try waitUntil("nothing is left on B", limit: 10) { try hosts.status(.b, guest.name) == nil && hosts.qemu(.b, guest.name) == nil }
        let swapped = try hosts.shadowVirt(.a, "swap", guest.name)
        try require(swapped.succeeded, swapped.summary)
        try guest.follow(to: .c, mayRepeat: 0)
        try guest.checkBooks()
    }
}
