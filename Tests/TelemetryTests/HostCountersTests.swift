import Platform
import XCTest
@testable import Telemetry

final class HostCountersTests: XCTestCase {
    private let begin = MonotonicTime(nanoseconds: 1_000_000_000_000)
    private func later(_ seconds: Double) -> MonotonicTime { begin.adding(milliseconds: seconds * 1000) }

    func testAnEmptyHostGivesNothing() throws {
        let tree = try HostTree()
        var counters = HostCounters(HostFiles(root: tree.root))
        XCTAssertEqual(counters.sample(at: begin), [:])
        XCTAssertEqual(counters.sample(at: later(5)), [:])
    }

    func testProcessorTimeBecomesPerCent() throws {
        let tree = try HostTree(["/proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3\n"])
        var counters = HostCounters(HostFiles(root: tree.root))
        XCTAssertNil(counters.sample(at: begin)["host_cpu_percent"], "one look is no rate")
        // 1000 ticks more: 300 user, 100 system, 400 idle, 50 iowait, 150 steal.
        try tree.write("/proc/stat", "cpu  400 0 200 1200 50 0 0 150 0 0\n")
        let values = counters.sample(at: later(5))
        XCTAssertEqual(values["host_cpu_percent"] ?? .nan, 55, accuracy: 1e-9)
        XCTAssertEqual(values["host_cpu_iowait_percent"] ?? .nan, 5, accuracy: 1e-9)
        XCTAssertEqual(values["host_cpu_steal_percent"] ?? .nan, 15, accuracy: 1e-9)
        // Another boot's counters.
        try tree.write("/proc/stat", "cpu  1 0 1 8 0 0 0 0 0 0\n")
        XCTAssertNil(counters.sample(at: later(10))["host_cpu_percent"])
        try tree.write("/proc/stat", "cpu  2 0 2 16 0 0 0 0 0 0\n")
        XCTAssertEqual(counters.sample(at: later(15))["host_cpu_percent"] ?? .nan, 20, accuracy: 1e-9)
        try tree.write("/proc/stat", "cpu  nonsense\n")
        XCTAssertNil(counters.sample(at: later(20))["host_cpu_percent"])
    }

    func testPressure() throws {
        func text(_ some: Int, _ full: Int) -> String {
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=\(some)\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=\(full)\n"
        }
        let tree = try HostTree(["/proc/pressure/io": text(0, 0), "/proc/pressure/cpu": text(0, 0)])
        var counters = HostCounters(HostFiles(root: tree.root))
        _ = counters.sample(at: begin)
        try tree.write("/proc/pressure/io", text(2_500_000, 500_000))
        try tree.write("/proc/pressure/cpu", text(1_000_000, 1_000_000))
        let values = counters.sample(at: later(5))
        XCTAssertEqual(values["host_pressure_io_some_percent"] ?? .nan, 50, accuracy: 1e-9)
        XCTAssertEqual(values["host_pressure_io_full_percent"] ?? .nan, 10, accuracy: 1e-9)
        XCTAssertEqual(values["host_pressure_cpu_some_percent"] ?? .nan, 20, accuracy: 1e-9)
        XCTAssertNil(values["host_pressure_cpu_full_percent"], "the kernel does not define it for a whole host")
        XCTAssertNil(values["host_pressure_memory_some_percent"])
    }

    func testMemoryErrorsThrottlingFrequencyAndTemperature() throws {
        let cpu = "/sys/devices/system/cpu"
        let tree = try HostTree([
            "/sys/devices/system/edac/mc/mc0/ce_count": "3\n", "/sys/devices/system/edac/mc/mc0/ue_count": "0\n",
            "/sys/devices/system/edac/mc/mc1/ce_count": "0\n", "/sys/devices/system/edac/mc/power": "",
            "\(cpu)/cpu0/thermal_throttle/core_throttle_count": "7\n", "\(cpu)/cpu1/thermal_throttle/core_throttle_count": "0\n",
            "\(cpu)/cpu0/cpufreq/scaling_cur_freq": "2000000\n", "\(cpu)/cpu1/cpufreq/scaling_cur_freq": "3000000\n", "\(cpu)/cpufreq": "",
            "/sys/class/thermal/thermal_zone0/temp": "45500\n", "/sys/class/thermal/thermal_zone1/temp": "-274000\n",
            "/proc/meminfo": "MemTotal:  100 kB\nMemAvailable:   64 kB\n", "/proc/loadavg": "1.25 0.5 0.1 1/100 4\n",
        ])
        var counters = HostCounters(HostFiles(root: tree.root))
        let first = counters.sample(at: begin)
        XCTAssertEqual(first["host_cpu_frequency_mhz"], 2500)
        XCTAssertEqual(first["host_temperature_celsius"], 45.5)
        XCTAssertEqual(first["host_memory_available_bytes"], 65536)
        XCTAssertEqual(first["host_load_1m"], 1.25)
        XCTAssertNil(first["host_ecc_corrected_per_second"])
        try tree.write("/sys/devices/system/edac/mc/mc1/ce_count", "10\n")
        try tree.write("\(cpu)/cpu1/thermal_throttle/core_throttle_count", "20\n")
        // Off line: its part is missing, not 0.
        try tree.remove("\(cpu)/cpu0/cpufreq")
        let second = counters.sample(at: later(5))
        XCTAssertEqual(second["host_ecc_corrected_per_second"], 2)
        XCTAssertEqual(second["host_ecc_uncorrected_per_second"], 0)
        XCTAssertEqual(second["host_thermal_throttles_per_second"], 4)
        XCTAssertEqual(second["host_cpu_frequency_mhz"], 3000)
    }

    func testThisHost() throws {
        var counters = HostCounters()
        _ = counters.sample()
        usleep(150_000)
        let values = counters.sample()
        XCTAssertTrue((0...100).contains(values["host_cpu_percent"] ?? -1), "\(values)")
        XCTAssertGreaterThan(values["host_memory_available_bytes"] ?? 0, 1_048_576)
    }
}
