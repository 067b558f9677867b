import Foundation
import XCTest

/// What is measured of a protected guest on both hosts, as `kpi` shows it.
final class KPITests: HostsTestCase {
    override class var configuration: [String] { ["telemetry_interval = 1", "probe_directories = [ \"/var/lib/libvirt/images\" ]"] }

    private struct Report: Decodable {
        struct Sample: Decodable {
            var time: String
            var primary: [String: Double]?
            var shadow: [String: Double]?
            var host: [String: Double]?
        }
        var schema: Int
        var domain: String?
        var samples: [Sample]
    }

    private func kpis(_ host: Host, _ words: String...) throws -> [Report.Sample] {
        let result = try hosts.run(host, [TwoHosts.binary, "kpi", "--format", "json", "-q"] + words, limit: 10)
        try require(result.succeeded, "kpi \(words): \(result.summary)")
        return try JSONDecoder().decode(Report.self, from: Data(result.out.utf8)).samples
    }

    /// Waits for so many samples in a row that pass, the newest among them.
    private func samples(_ count: Int, _ what: String, _ guest: LedgerGuest, limit: Double = 15, where passes: (Report.Sample) -> Bool) throws -> [Report.Sample] {
        var last: [Report.Sample] = []
        try waitUntil("\(count) samples \(what) of \(guest.name)", limit: limit, every: 0.3) {
            last = Array(try kpis(guest.home, guest.name, "--since", "1m").suffix(count))
            return last.count == count && last.allSatisfy(passes)
        }
        return last
    }

    func testBothSidesAreMeasuredAndADeadPeerIsAbsent() throws {
        let guest = try protectedGuest(on: .a)
        let before = (time: Date(), used: try processorSeconds(guest))
        _ = try samples(5, "with both sides", guest) { $0.shadow != nil }
        let after = (time: Date(), used: try processorSeconds(guest))
        let rows = try samples(3, "with both sides", guest) {
            // The first one may be of the moment when protection had just begun.
            $0.primary?["vcpu_time_percent"] != nil && ($0.primary?["commits_per_second"] ?? 0) >= 5 && $0.shadow?["commits_per_second"] != nil
        }
        for row in rows {
            let (primary, shadow) = (row.primary ?? [:], row.shadow ?? [:])
            XCTAssertLessThanOrEqual(primary["commits_per_second"] ?? 99, 60, "20 ms apart")
            XCTAssertGreaterThan(primary["dirty_bytes_per_second"] ?? 0, 4096)
            for side in [primary, shadow] {
                XCTAssertTrue((1...5000).contains(side["host_memory_latency_ns"] ?? -1), "\(side)")
                XCTAssertTrue((0.001...2000).contains(side["host_storage_write_ms"] ?? -1), "\(side)")
                XCTAssertTrue((0.001...1000).contains(side["peer_round_trip_ms"] ?? -1), "\(side)")
                XCTAssertTrue((0...100).contains(side["host_cpu_percent"] ?? -1), "\(side)")
            }
            let both = Set(primary.keys).intersection(shadow.keys)
            XCTAssertTrue(both.isSuperset(of: ["host_load_1m", "commits_per_second", "commit_age_ms", "replication_bytes_per_second"]), "\(both.sorted())")
        }
        // The guest's CPU time as the kernel has it, over the time of those samples.
        let expected = (after.used - before.used) / after.time.timeIntervalSince(before.time) * 100
        let measured = try kpis(.a, guest.name).suffix(8).compactMap { $0.primary?["cpu_time_percent"] }.median
        report(String(format: "telemetry: the guest's CPU time %.1f %%, by /proc %.1f %%", measured, expected))
        XCTAssertTrue((expected * 0.5 - 5...expected * 1.6 + 5).contains(measured), "\(measured) % measured, \(expected) % by /proc")
        XCTAssertGreaterThan(measured, 3)
        XCTAssertGreaterThan(try kpis(.b).filter { $0.host?["host_memory_latency_ns"] != nil }.count, 2, "the shadow's host keeps its own as well")

        let csv = try hosts.run(.a, [TwoHosts.binary, "kpi", guest.name, "--format", "csv", "-q"])
        let header = csv.out.split(separator: "\n").first ?? ""
        XCTAssertTrue(header.hasPrefix("timestamp,p_") && header.contains(",s_host_memory_latency_ns"), csv.summary)
        let table = try hosts.shadowVirt(.a, "kpi", guest.name)
        XCTAssertTrue(table.out.hasPrefix("KPI ") && table.out.contains("vcpu_time_percent"), table.summary)
        print(table.out)
        let unknown = try hosts.shadowVirt(.a, "kpi", "nobody")
        XCTAssertEqual(unknown.status, 1, unknown.summary)
        XCTAssertTrue(unknown.err.contains("no KPIs of a domain nobody"), unknown.summary)
        try cost()

        // Nobody answers there, nor says so: the worst a peer can do.
        guard let pid = try hosts.service(.b).pid else { return XCTFail("No service on B") }
        kill(pid, SIGSTOP)
        defer { kill(pid, SIGCONT) }
        let alone = try samples(2, "without the shadow's side", guest) { $0.primary?["vcpu_time_percent"] != nil && $0.shadow == nil }
        XCTAssertNil(alone.last?.primary?["peer_round_trip_ms"])
        XCTAssertNotNil(alone.last?.primary?["host_storage_write_ms"])
        kill(pid, SIGCONT)
        _ = try samples(1, "with both sides again", guest) { $0.shadow?["host_memory_latency_ns"] != nil }
        try guest.checkBooks()
    }

    /// What QEMU has used, all its threads: clock ticks, of which Linux has 100 a second for user space.
    private func processorSeconds(_ guest: LedgerGuest) throws -> Double {
        guard let pid = try hosts.qemu(guest.home, guest.name), let stat = FileManager.default.contents(atPath: "/proc/\(pid)/stat") else { throw TestFailure("No QEMU") }
        let fields = String(decoding: stat, as: UTF8.self).split(separator: ")").last?.split(separator: " ") ?? []
        try require(fields.count > 12, "stat of QEMU")
        return ((Double(fields[11]) ?? 0) + (Double(fields[12]) ?? 0)) / 100
    }

    /// A libvirtd that does not answer costs what only it knows, and holds up nothing.
    func testALibvirtThatHangsHoldsNothingUp() throws {
        let guest = try protectedGuest(on: .a)
        // A rate needs two looks.
        _ = try samples(1, "with all", guest) { $0.primary?["vcpu_time_percent"] != nil && $0.shadow?["commits_per_second"] != nil }
        let note = try String(contentsOfFile: hosts.root(.a) + "/libvirtd.pid", encoding: .utf8)
        guard let pid = note.split(whereSeparator: \.isWhitespace).first.flatMap({ pid_t($0) }) else { return XCTFail("libvirtd.pid: \(note)") }
        kill(pid, SIGSTOP)
        defer { kill(pid, SIGCONT) }
        let rows = try samples(2, "without libvirt", guest) { $0.primary?["vcpu_time_percent"] == nil && $0.primary?["host_storage_write_ms"] != nil }
        XCTAssertTrue(rows.allSatisfy { $0.shadow?["commits_per_second"] != nil && $0.primary?["commits_per_second"] != nil }, "\(rows)")
        kill(pid, SIGCONT)
        _ = try samples(1, "with libvirt again", guest) { $0.primary?["vcpu_time_percent"] != nil }
    }

    /// QEMU dies: what both sides measured until then is where the guest goes on, and grows there.
    func testHistoryGoesOverWithTheGuest() throws {
        let guest = try protectedGuest(on: .a)
        _ = try samples(5, "with both sides", guest) { $0.shadow != nil && $0.primary?["vcpu_time_percent"] != nil }
        func history(_ isWanted: (Report.Sample) -> Bool) throws -> [Report.Sample] {
            let result = try hosts.run(.b, [TwoHosts.binary, "kpi", guest.name, "--format", "json", "-q", "--since", "2m"], limit: 10)
            return result.succeeded ? try JSONDecoder().decode(Report.self, from: Data(result.out.utf8)).samples.filter(isWanted) : []
        }
        let isPair: (Report.Sample) -> Bool = { $0.primary?["vcpu_time_percent"] != nil && $0.primary?["epoch_pause_ms"] != nil && $0.shadow?["commits_per_second"] != nil }
        try waitUntil("the shadow's host knows both sides", limit: 10, every: 0.3) { try history(isPair).count >= 4 }
        let before = try history(isPair)
        try guest.killQEMU()
        try guest.followToOther(mayRepeat: .max)
        let last = before.last?.time ?? ""
        try waitUntil("the guest's KPIs at its new host", limit: 15, every: 0.3) { try history { $0.time > last && !isPair($0) && $0.primary?["vcpu_time_percent"] != nil }.count >= 2 }
        let after = try history { _ in true }
        XCTAssertGreaterThanOrEqual(after.filter(isPair).count, before.count)
        XCTAssertEqual(after.map(\.time), after.map(\.time).sorted())
        XCTAssertEqual(Set(after.map(\.time)).count, after.count, "no moment twice")
    }

    private func cost() throws {
        struct Cost: Decodable { var telemetry_cpu_percent: Double? }
        let status = try hosts.shadowVirt(.a, "status", "--format", "json")
        let percent = try XCTUnwrap(JSONDecoder().decode(Cost.self, from: Data(status.out.utf8)).telemetry_cpu_percent)
        report(String(format: "telemetry every second: %.2f %% of a core", percent))
        // Five times as often as shipped, and not optimised.
        XCTAssertTrue((0.001...10).contains(percent), "\(percent) % of a core")
    }
}
