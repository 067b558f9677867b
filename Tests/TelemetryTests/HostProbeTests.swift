import Foundation
import Platform
import XCTest
@testable import Telemetry

final class HostProbeTests: XCTestCase {
    func testTheChainVisitsEveryLineOnce() throws {
        XCTAssertEqual(try MemoryProbe(bytes: 1 << 20).cycle, (1 << 20) / 64)
        XCTAssertEqual(try MemoryProbe(bytes: 128).cycle, 2)
    }

    func testMemoryIsSlowerThanTheCache() throws {
        // 16 KiB stay in the first cache; what is four times the last one's size does not.
        let small = try MemoryProbe(bytes: 16 << 10), large = try MemoryProbe(bytes: 128 << 20)
        _ = small.look()
        let (near, far) = ((0..<5).map { _ in small.look() }.min() ?? 0, (0..<5).map { _ in large.look() }.min() ?? 0)
        XCTAssertGreaterThan(near, 0.2)
        XCTAssertLessThan(far, 5000)
        XCTAssertGreaterThan(far, near * 2, "ns a load: \(near) in the cache, \(far) in memory")
    }

    func testTheBufferFollowsTheCacheWithinLimits() throws {
        let cache = "/sys/devices/system/cpu/cpu0/cache"
        for (files, expected) in [
            ([:], 16 << 20), (["\(cache)/index0/size": "32K\n", "\(cache)/index3/size": "32768K\n"], 64 << 20),
            (["\(cache)/index3/size": "1024M\n"], MemoryProbe.ceiling), (["\(cache)/index3/size": "much\n"], 16 << 20),
        ] {
            let tree = try HostTree(files)
            XCTAssertEqual(MemoryProbe.size(HostFiles(root: tree.root)), expected, "\(files)")
        }
    }

    func testStorageLatencyLeavesNothingBehind() throws {
        let tree = try HostTree(["/disk/image": "x"])
        let latency = try StorageProbe(folder: tree.root + "/disk").look()
        XCTAssertGreaterThan(latency.writeMs, 0)
        if let read = latency.readMs { XCTAssertGreaterThan(read, 0) }
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: tree.root + "/disk"), ["image"])
        XCTAssertThrowsError(try StorageProbe(folder: tree.root + "/none").look()) { XCTAssertTrue("\($0)".contains("/none"), "\($0)") }
    }

    func testACollectorOfAnEmptyTreeMeasuresWhatIsThere() throws {
        let tree = try HostTree(["/images/a": "", "/proc/loadavg": "0.5 0 0 1/1 1\n"])
        let collector = HostCollector(meter: CPUMeter(), root: tree.root) { ["/images", "/gone"] }
        let values = collector.sample(until: MonotonicTime.now.adding(milliseconds: 5000))
        XCTAssertEqual(values["host_load_1m"], 0.5)
        XCTAssertNotNil(values["host_memory_latency_ns"])
        XCTAssertGreaterThan(values["host_storage_write_ms"] ?? 0, 0)
        XCTAssertEqual(values["host_storage_write_ms"], values["host_storage_write_ms@/images"])
        XCTAssertNil(values["host_storage_write_ms@/gone"])
        XCTAssertNil(values["host_cpu_percent"])
    }

    /// What the unit shadow-virt-smart put aside: fresh reports of disks that are there.
    func testSmartReportsPutAside() throws {
        let tree = try HostTree()
        let health = DiskHealth(HostFiles(root: tree.root))
        for disk in ["sda", "sdb", "sdc", "nvme0n1"] { try tree.write("/sys/block/\(disk)/size", "1") }
        XCTAssertEqual(health.look(nil), [:])
        func report(_ disk: String, _ passed: Bool, _ celsius: Int) throws {
            try tree.write("\(DiskHealth.reports)/\(disk).json", "{\"smart_status\":{\"passed\":\(passed)},\"temperature\":{\"current\":\(celsius)}}")
        }
        try report("sda", true, 40)
        try report("nvme0n1", false, 70)
        try report("sdz", false, 99)
        try report("sdb", false, 98)
        try FileManager.default.setAttributes([.modificationDate: Date(timeIntervalSinceNow: -DiskHealth.reportLastsSeconds - 1)],
                                              ofItemAtPath: "\(tree.root)\(DiskHealth.reports)/sdb.json")
        try tree.write("\(DiskHealth.reports)/sdc.json", "no JSON")
        XCTAssertEqual(health.everyMs, DiskHealth.reportsEveryMs)
        // A tool that is not there is not asked.
        XCTAssertEqual(health.look("/no/such/tool"), [
            "host_disk_smart_failed_count": 1, "host_disk_smart_failed_count@sda": 0, "host_disk_smart_failed_count@nvme0n1": 1,
            "host_disk_temperature_celsius": 70, "host_disk_temperature_celsius@sda": 40, "host_disk_temperature_celsius@nvme0n1": 70,
        ])
    }

    func testSmartReports() throws {
        let ata = """
            {"json_format_version":[1,0],"smart_status":{"passed":false},"temperature":{"current":41},
             "ata_smart_attributes":{"table":[{"id":5,"raw":{"value":12,"string":"12"}},{"id":187,"raw":{"value":2}},{"id":197,"raw":{"value":1}}]}}
            """
        let nvme = """
            {"smart_status":{"passed":true,"nvme":{"value":0}},"temperature":{"current":55},
             "nvme_smart_health_information_log":{"critical_warning":0,"percentage_used":7,"media_errors":0}}
            """
        var values: [String: Double] = [:]
        try JSONDecoder().decode(SmartReport.self, from: Data(ata.utf8)).add(to: &values, "sda")
        try JSONDecoder().decode(SmartReport.self, from: Data(nvme.utf8)).add(to: &values, "nvme0n1")
        try JSONDecoder().decode(SmartReport.self, from: Data("{}".utf8)).add(to: &values, "sdb")
        XCTAssertEqual(values["host_disk_smart_failed_count"], 1)
        XCTAssertEqual(values["host_disk_smart_failed_count@nvme0n1"], 0)
        XCTAssertNil(values["host_disk_smart_failed_count@sdb"])
        XCTAssertEqual(values["host_disk_temperature_celsius"], 55)
        XCTAssertEqual(values["host_disk_temperature_celsius@sda"], 41)
        XCTAssertEqual(values["host_disk_reallocated_sectors_count"], 12)
        XCTAssertEqual(values["host_disk_pending_sectors_count"], 1)
        XCTAssertEqual(values["host_disk_media_errors_count"], 2)
        XCTAssertEqual(values["host_disk_wear_percent"], 7)
    }

    func testWholeDisksAreFound() throws {
        let tree = try HostTree(Dictionary(uniqueKeysWithValues: ["sda", "nvme0n1", "loop0", "dm-0", "ram1", "sr0"].map { ("/sys/block/\($0)/size", "1") }))
        XCTAssertEqual(DiskHealth(HostFiles(root: tree.root)).disks, ["nvme0n1", "sda"])
    }

    func testADiskIsAskedThroughTheProgram() throws {
        let tree = try HostTree(["/sys/block/sda/size": "1", "/sys/block/sdb/size": "1", "/smartctl": """
            #!/bin/sh
            case $* in *--nocheck=standby*/dev/sda) echo '{"smart_status":{"passed":true},"temperature":{"current":33}}'; exit 4 ;; esac
            echo 'Cannot open' >&2; exit 2
            """])
        chmod(tree.root + "/smartctl", 0o755)
        XCTAssertEqual(DiskHealth(HostFiles(root: tree.root)).look(tree.root + "/smartctl"), [
            "host_disk_smart_failed_count": 0, "host_disk_smart_failed_count@sda": 0,
            "host_disk_temperature_celsius": 33, "host_disk_temperature_celsius@sda": 33,
        ])
    }
}
