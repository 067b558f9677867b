import Foundation
import Platform
import Telemetry
import XCTest
@testable import Drift
@testable import Orchestration

final class DriftWatchTests: XCTestCase {
    private var folder = ""
    private var store: DriftStore { DriftStore(stateDirectory: folder) }

    override func setUp() { folder = NSTemporaryDirectory() + "/drift-\(UUID().uuidString)" }
    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }

    private func watch() -> DriftWatch { DriftWatch(domain: "web1", DriftWatch.fresh(uuid: "u", peer: "b", stepSeconds: 60, shape: "2 CPUs", now: 1000)) }

    /// Both sides see the same load; from `faultAt` on the primary's latency is what `factor` makes of it.
    private func feed(_ watch: inout DriftWatch, _ rows: Range<Int>, faultAt: Int = .max, factor: Double = 1, clockIsBackBy back: Int = 0) {
        for row in rows {
            let load = 100 + 20 * sin(Double(row) / 30)
            func noise(_ side: UInt64) -> Double {
                var bits = (UInt64(row) &* 2 &+ side) &* 0x9e37_79b9_7f4a_7c15
                bits = (bits ^ (bits >> 30)) &* 0xbf58_476d_1ce4_e5b9
                return Double((bits ^ (bits >> 27)) >> 11) / Double(UInt64(1) << 53)
            }
            func side(_ factor: Double, _ noise: Double) -> Sample {
                Sample(time: UInt64(1_700_000_000_000 + (row - back) * 60_000), values: ["host_storage_write_ms": (2 + noise) * factor, "host_cpu_percent": load / 4 + noise])
            }
            watch.take(PairSample(uuid: "u", domain: "web1", peer: "b", primary: side(row >= faultAt ? factor : 1, noise(0)), shadow: side(1, noise(1))))
        }
    }

    func testWhatIsLearnedSurvivesARestart() throws {
        var one = watch()
        feed(&one, 0..<400)
        XCTAssertNotNil(one.score)
        XCTAssertLessThan(one.score ?? 9, 1, "\(one.verdict?.explanation ?? [])")
        try store.save(one.saved)
        let loaded = try XCTUnwrap(store.load(uuid: "u", peer: "b", stepSeconds: 60))
        var other = DriftWatch(domain: "web1", loaded)
        feed(&one, 400..<520, faultAt: 420, factor: 8)
        feed(&other, 400..<520, faultAt: 420, factor: 8)
        XCTAssertEqual(one.score, other.score)
        XCTAssertGreaterThan(other.score ?? 0, 1)
        XCTAssertEqual(other.verdict?.side, .primary)
        let report = other.report(onDrift: "swap", intervalMs: 20, intervalReason: "as configured")
        XCTAssertTrue(report.isAlarm)
        XCTAssertEqual(report.side, "primary")
        XCTAssertEqual(report.contributions.first?.kpi, "host_storage_write_ms")
        XCTAssertEqual(report.samples, 520)
    }

    /// The last verdict must not stand, nor the baseline be lost, until the clock is as late again.
    func testAClockThatIsSetBackBlindsNobody() {
        var one = watch()
        feed(&one, 0..<400)
        feed(&one, 400..<500, faultAt: 400, factor: 8, clockIsBackBy: 300)
        XCTAssertGreaterThan(one.score ?? 0, 1)
        XCTAssertEqual(one.verdict?.side, .primary)
        feed(&one, 500..<600, clockIsBackBy: 450)
        XCTAssertLessThan(one.score ?? 9, 1)
    }

    func testWhatDoesNotFitIsLearnedAnew() throws {
        var one = watch()
        feed(&one, 0..<70)
        try store.save(one.saved)
        XCTAssertNil(store.load(uuid: "u", peer: "c", stepSeconds: 60), "another host")
        XCTAssertNil(store.load(uuid: "u", peer: "b", stepSeconds: 1), "another step")
        one.begin(shape: "4 CPUs", now: 2000)
        XCTAssertNil(one.score)
        XCTAssertEqual(one.saved.samples, 0)
        let path = "\(store.folder)/u@b.json"
        try "{".write(toFile: path, atomically: true, encoding: .utf8)
        XCTAssertNil(store.load(uuid: "u", peer: "b", stepSeconds: 60), "not a file of ours")
        store.remove(uuid: "u", peer: "b")
        XCTAssertFalse(FileManager.default.fileExists(atPath: path))
        store.remove(uuid: "u", peer: "b")
    }

    /// An hour and a half at a look every five seconds, with surges that both sides see, and jitter of each side's own.
    func testHealthyNoiseIsNoAlarm() {
        var one = watch()
        var seed: UInt64 = 4711
        func noise() -> Double {
            seed = seed &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Double(seed >> 40) / Double(1 << 24)
        }
        var worst = 0.0
        for row in 0..<1080 {
            let surge = (row / 90) % 3 == 2 ? 3.0 : 1
            func side() -> Sample {
                Sample(time: UInt64(1_700_000_000_000 + row * 60_000), values: [
                    "host_storage_write_ms": 2 * surge * exp(0.3 * (noise() + noise() - 1)), "host_memory_latency_ns": 90 + 8 * noise(),
                    "host_cpu_percent": min(100, 20 * surge + 5 * noise()), "peer_round_trip_ms": 0.4 * exp(0.5 * (noise() + noise() - 1)),
                ])
            }
            one.take(PairSample(uuid: "u", domain: "web1", peer: "b", primary: side(), shadow: side()))
            worst = max(worst, one.score ?? 0)
        }
        XCTAssertGreaterThan(worst, 0)
        XCTAssertLessThan(worst, 1)
    }

    func testWhileLearningThereIsNoScore() {
        var one = watch()
        feed(&one, 0..<20)
        let report = one.report(onDrift: "notify", intervalMs: 20, intervalReason: "as configured")
        XCTAssertTrue(report.isLearning)
        XCTAssertNil(report.score)
        XCTAssertEqual(report.explanation, ["Learning the baseline: nothing is judged yet"])
    }

    func testTheShareOfPauses() {
        var one = watch()
        var now = MonotonicTime(nanoseconds: 1_000_000_000), total = 0.0
        for _ in 0..<100 {
            one.notePause(totalMilliseconds: total, at: now)
            now = now.adding(milliseconds: 1000)
            total += 200
        }
        XCTAssertEqual(one.pauseShare, 0.2, accuracy: 0.01)
        one.notePause(totalMilliseconds: 3, at: now)
        XCTAssertEqual(one.pauseShare, 0, "a new worker counts from 0")
    }

    /// The interval that doubt shortens changes what epochs are measured by: that must not be more doubt.
    func testAnIntervalOfOurOwnIsNoDrift() {
        func worst(_ mode: IntervalLaw.Mode) -> Double {
            var one = watch(), worst = 0.0
            for row in 0..<400 {
                if row == 200, mode == .shortened {
                    var law = IntervalLaw(.init(configuredMs: 100, isPeriodic: false, least: 0))
                    _ = law.step(.init(now: 1, pressure: 1, cause: "test", pauseShare: 0, isLagging: false))
                    one.law = law
                }
                let jitter = Double((row &* 7919) % 97) / 97
                func side(_ age: Double) -> Sample { Sample(time: UInt64(1_700_000_000_000 + row * 60_000), values: ["commit_age_ms": age + jitter, "host_cpu_percent": 20 + jitter]) }
                one.take(PairSample(uuid: "u", domain: "web1", peer: "b", primary: side(row < 200 ? 100 : 300), shadow: side(100)))
                worst = max(worst, one.score ?? 0)
            }
            return worst
        }
        XCTAssertGreaterThan(worst(.configured), 1)
        XCTAssertLessThan(worst(.shortened), 0.5)
    }

    func testShape() throws {
        func shape(_ cpus: Int, _ disks: String) throws -> String {
            try DomainDefinition(xml: "<domain type='kvm'><name>d</name><memory unit='MiB'>64</memory><vcpu>\(cpus)</vcpu><devices>\(disks)</devices></domain>").shape
        }
        let disk = "<disk type='file' device='disk'><target dev='vda'/></disk>"
        XCTAssertEqual(try shape(2, disk), "2 CPUs, 65536 KiB, disks vda")
        XCTAssertEqual(try shape(2, disk + "<disk type='file' device='cdrom'><target dev='sda'/></disk>"), try shape(2, disk), "a CD is no disk")
        XCTAssertNotEqual(try shape(4, disk), try shape(2, disk))
    }
}
