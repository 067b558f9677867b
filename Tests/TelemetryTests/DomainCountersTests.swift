import Foundation
import Libvirt
import Platform
import XCTest
@testable import Telemetry

final class DomainCountersTests: XCTestCase {
    private let begin = MonotonicTime(nanoseconds: 1_000_000_000_000)

    private func statistics(_ values: KeyValuePairs<String, TypedParameters.Value>) -> DomainStatistics {
        var parameters = TypedParameters()
        for (name, value) in values { parameters.append(name, value) }
        return DomainStatistics(domainName: "web1", domainUUID: "u", values: parameters)
    }

    func testRatesOfADomain() {
        var counters = DomainCounters()
        func look(_ factor: UInt64) -> DomainStatistics {
            statistics([
                "vcpu.current": .uint(2), "vcpu.maximum": .uint(2),
                "vcpu.0.state": .int(1), "vcpu.0.time": .ulong(4_000_000_000 * factor), "vcpu.0.wait": .ulong(0), "vcpu.0.delay": .ulong(500_000_000 * factor), "vcpu.0.halted": .bool(true),
                "vcpu.1.state": .int(1), "vcpu.1.time": .ulong(1_000_000_000 * factor), "vcpu.1.wait": .ulong(0), "vcpu.1.delay": .ulong(0), "vcpu.1.halted": .bool(false),
                "cpu.time": .ulong(6_000_000_000 * factor), "balloon.current": .ulong(1024), "balloon.rss": .ulong(2048),
                "block.count": .uint(2),
                "block.0.name": .string("vda"), "block.0.rd.reqs": .ulong(100), "block.0.rd.bytes": .ulong(4096), "block.0.rd.times": .ulong(5),
                "block.0.wr.reqs": .ulong(10 * factor), "block.0.wr.bytes": .ulong(40_960 * factor), "block.0.wr.times": .ulong(30_000_000 * factor),
                "block.1.name": .string("vdb"), "block.1.wr.reqs": .ulong(0), "block.1.wr.bytes": .ulong(0), "block.1.wr.times": .ulong(0),
                "net.count": .uint(1), "net.0.name": .string("vnet0"), "net.0.rx.bytes": .ulong(1000 * factor), "net.0.tx.drop": .ulong(5 * factor),
            ])
        }
        let first = counters.values(look(1), at: begin)
        XCTAssertEqual(first, ["vcpus_halted_count": 1, "vcpus_online_count": 2, "memory_balloon_bytes": 1_048_576, "memory_resident_bytes": 2_097_152])
        let second = counters.values(look(2), at: begin.adding(milliseconds: 5000))
        XCTAssertEqual(second["vcpu_time_percent"], 100)
        XCTAssertEqual(second["vcpu_delay_percent"], 10)
        XCTAssertEqual(second["vcpu_wait_percent"], 0)
        XCTAssertEqual(second["cpu_time_percent"], 120)
        XCTAssertEqual(second["block_write_requests_per_second"], 2)
        XCTAssertEqual(second["block_write_bytes_per_second"], 8192)
        XCTAssertEqual(second["block_write_ms"] ?? .nan, 3, accuracy: 1e-9)
        XCTAssertEqual(second["block_read_requests_per_second"], 0)
        XCTAssertNil(second["block_read_ms"], "nothing was read")
        XCTAssertNil(second["block_flush_ms"], "not reported")
        XCTAssertEqual(second["net_received_bytes_per_second"], 200)
        XCTAssertEqual(second["net_drops_per_second"], 1)
        XCTAssertNil(second["net_errors_per_second"])
        // Booted anew.
        let third = counters.values(look(0), at: begin.adding(milliseconds: 10_000))
        XCTAssertNil(third["vcpu_time_percent"])
        XCTAssertNil(third["block_write_ms"])
    }

    func testADirtyRateCountsOnceItIsMeasured() {
        var counters = DomainCounters()
        XCTAssertNil(counters.values(statistics(["dirtyrate.calc_status": .int(1), "dirtyrate.megabytes_per_second": .long(0)]), at: begin)["dirty_bytes_per_second"])
        XCTAssertEqual(counters.values(statistics(["dirtyrate.calc_status": .int(2), "dirtyrate.megabytes_per_second": .long(3)]), at: begin)["dirty_bytes_per_second"], 3_145_728)
    }

    func testOnlyAConnectedAgentIsAsked() {
        func xml(_ target: String) -> String { "<domain><devices><channel type='unix'><target type='virtio' \(target)/></channel></devices></domain>" }
        XCTAssertTrue(GuestAgent.isConnected(xml("name='org.qemu.guest_agent.0' state='connected'")))
        XCTAssertFalse(GuestAgent.isConnected(xml("name='org.qemu.guest_agent.0' state='disconnected'")))
        XCTAssertFalse(GuestAgent.isConnected(xml("name='org.qemu.guest_agent.0'")))
        XCTAssertFalse(GuestAgent.isConnected(xml("name='com.redhat.spice.0' state='connected'")))
        XCTAssertFalse(GuestAgent.isConnected("<domain><description>org.qemu.guest_agent.0</description></domain>"))
    }

    /// Replies in the form of QEMU's qga/qapi-schema.json.
    func testRepliesOfTheAgent() throws {
        func parse<T: Decodable>(_ type: T.Type, _ json: String) throws -> T { try JSONDecoder().decode(type, from: Data(json.utf8)) }
        let agent = GuestAgent(name: "web1")
        var values: [String: Double] = [:]
        // As qemu-ga 7.2.22 wrote it.
        let real = #"[{"cpu": 0, "guestnice": 0, "idle": 1840, "steal": 0, "iowait": 0, "system": 9310, "guest": 0, "nice": 0, "irq": 0, "type": "linux", "user": 790, "softirq": 110}]"#
        XCTAssertEqual(try parse([AgentReplies.CPU].self, real).map { [$0.busy, $0.total] }, [[10_210, 12_050]])
        let cpu = { (user: Int, idle: Int) in
            try parse([AgentReplies.CPU].self, #"[{"type":"linux","cpu":0,"user":\#(user),"nice":0,"system":0,"idle":\#(idle),"iowait":0,"irq":0,"softirq":0,"steal":0,"guest":0}]"#)
        }
        agent.add(try cpu(100, 900), begin, &values)
        XCTAssertEqual(values, [:])
        agent.add(try cpu(850, 1150), begin.adding(milliseconds: 1000), &values)
        XCTAssertEqual(values["guest_cpu_percent"], 75)
        let disk = { (read: Int, ticks: Int) in
            try parse([AgentReplies.Disk].self, #"[{"name":"vda","major":254,"minor":0,"stats":{"read-sectors":\#(read),"write-sectors":0,"total-ticks":\#(ticks)}},"#
                + #"{"name":"vda1","major":254,"minor":1,"stats":{"read-sectors":\#(read)}}]"#)
        }
        agent.add(try disk(0, 0), begin, &values)
        agent.add(try disk(8, 500), begin.adding(milliseconds: 1000), &values)
        XCTAssertEqual(values["guest_disk_read_bytes_per_second"], 4096, "the partition is a part of its disk")
        XCTAssertEqual(values["guest_disk_busy_percent"], 50)
        agent.add(try parse([AgentReplies.FileSystem].self, #"[{"name":"vda1","mountpoint":"/","type":"ext4","used-bytes":25,"total-bytes":100,"disk":[]},{"name":"x","mountpoint":"/x","type":"y","disk":[]}]"#), &values)
        XCTAssertEqual(values["guest_filesystem_used_percent"], 25)
        let info = try parse(AgentReplies.Info.self, #"{"version":"7.2.0","supported_commands":[{"enabled":true,"name":"guest-get-users","success-response":true},{"enabled":false,"name":"guest-exec","success-response":true}]}"#)
        XCTAssertEqual(info.enabledNames, ["guest-get-users"])
    }
}
