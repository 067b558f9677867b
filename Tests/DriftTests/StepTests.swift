import XCTest
@testable import Drift

/// What a live service feeds: a sample every five seconds.
final class StepTests: XCTestCase {
    private func live(seconds: Int, seed: UInt64 = 1, bend: @escaping (Int, inout [String: Double?], inout [String: Double?]) -> Void = { _, _, _ in }) -> [Sample] {
        pair(rows: seconds / 5, step: 5, seed: seed, work: Work { 1 + 0.4 * sin(Double($0) / 1800) }) { index, primary, shadow in bend(index * 5, &primary, &shadow) }
    }

    func testTheBaselineTakesMinutesWhateverTheStep() throws {
        let all = verdicts(live(seconds: 3600), step: 5)
        let ready = try XCTUnwrap(all.firstIndex { !$0.isLearning }) * 5
        XCTAssertTrue((1190...1260).contains(ready), "\(ready) s")
    }

    func testHiccupsOfFifteenSecondsRaiseNoAlarm() {
        let all = verdicts(live(seconds: 7200) { second, primary, _ in
            if second > 1500, second % 600 < 15 { for name in primary.keys { scale(&primary, name, by: 5) } }
        }, step: 5)
        XCTAssertNil(all.firstAlarm, "\(all.first(where: \.isAlarm)?.explanation ?? [])")
    }

    func testHealthyNoiseRaisesNoAlarm() {
        for seed in 1...3 { XCTAssertNil(verdicts(live(seconds: 14400, seed: UInt64(seed)), step: 5).firstAlarm, "seed \(seed)") }
    }

    func testTroubleThatLastsIsFoundWithinMinutesButNotWithinOne() throws {
        let all = verdicts(live(seconds: 5400) { second, primary, _ in
            if second >= 3600 { scale(&primary, "disk_latency_ms", by: 2) }
        }, step: 5)
        // The sample stands for the five seconds that follow it.
        let delay = (try XCTUnwrap(all.firstAlarm) + 1) * 5 - 3600
        XCTAssertTrue((60...240).contains(delay), "\(delay) s")
        XCTAssertEqual(all.last(where: \.isAlarm)?.side, .primary)
    }

    func testBlocksSurviveLostSamplesAndGaps() throws {
        var noise = Noise(4)
        let samples = live(seconds: 7200) { second, primary, _ in
            if second >= 5400 { scale(&primary, "disk_latency_ms", by: 2) }
        }.filter { sample in noise.uniform() > 0.2 && !(2000..<2070).contains(sample.time) }
        let all = verdicts(samples, step: 5)
        let first = samples[try XCTUnwrap(all.firstAlarm)].time
        XCTAssertTrue((5400..<5700).contains(first), "\(first)")
    }

    func testARestartInsideABlockChangesNothing() throws {
        let samples = live(seconds: 1800), expected = verdicts(samples, step: 5)
        var analyzer = DriftAnalyzer(step: 5)
        for (index, sample) in samples.enumerated() {
            if index % 7 == 5 { analyzer = try JSONDecoder().decode(DriftAnalyzer.self, from: JSONEncoder().encode(analyzer)) }
            XCTAssertEqual(analyzer.add(time: sample.time, primary: sample.primary, shadow: sample.shadow), index < 3 ? analyzer.verdict ?? expected[index] : expected[index])
        }
    }

    func testAStateThatLastsIsAcceptedInTheEnd() {
        var settings = DriftConfiguration()
        settings.frozenSeconds = 7200
        var analyzer = DriftAnalyzer(step: 60, configuration: settings)
        let all = pair(rows: 1000) { index, primary, _ in if index >= 300 { scale(&primary, "disk_latency_ms", by: 2) } }
            .map { analyzer.add(time: $0.time, primary: $0.primary, shadow: $0.shadow) }
        XCTAssertTrue(all[320..<400].allSatisfy(\.isAlarm))
        XCTAssertFalse(all[550...].contains(where: \.isAlarm))
    }
}

final class WorkingLevelTests: XCTestCase {
    func testASteadyQuantityHasItsMeanAndABurstyOneItsBusyLevel() {
        var steady = WorkingLevel(), bursty = WorkingLevel(), absurd = WorkingLevel()
        for index in 0..<4000 {
            steady.learn(50 + Double(index % 3), memory: 6000)
            bursty.learn(index % 20 == 0 ? 400 : 2, memory: 6000)
            absurd.learn(index == 2000 ? 1e300 : 50, memory: 6000)
        }
        XCTAssertEqual(steady.level, 51, accuracy: 0.5)
        XCTAssertEqual(bursty.level, 400, accuracy: 60)
        XCTAssertLessThan(absurd.level, 60)
    }

    func testIdleNoiseOfABurstyQuantityIsNoDrift() {
        var noise = Noise(6)
        let samples = (0..<2000).map { index -> Sample in
            let busy = index % 25 < 3
            func value() -> Double { busy ? 300 + 20 * noise.normal() : max(0.5, 1 + 0.6 * noise.normal()) }
            return (Double(index) * 300, ["disk_kbs": value(), "cpu": 40 + noise.normal()], ["disk_kbs": value(), "cpu": 42 + noise.normal()])
        }
        let all = verdicts(samples, step: 300)
        XCTAssertNil(all.firstAlarm, "\(all.first(where: \.isAlarm)?.explanation ?? [])")
    }
}

final class SpikeTestTests: XCTestCase {
    func testClusteredBurstsAskForMoreInTime() {
        let settings = DriftConfiguration()
        var test = SpikeTest(settings), early = 0.0, late = 0.0
        for index in 0..<6000 {
            test.add(index % 300 < 12 && index % 4 == 0 ? 8 : 0, settings)
            if index < 300 { early = max(early, test.score(settings)) } else if index > 5000 { late = max(late, test.score(settings)) }
        }
        XCTAssertGreaterThan(early, 1)
        XCTAssertLessThan(late, early)
    }

    /// A share of spikes whose size is natural alarms only when they are many; a size that is not natural needs to come twice.
    func testASizeCountsOnceItCameTwice() {
        let settings = DriftConfiguration()
        func highest(_ spikes: [Int: Double]) -> Double {
            var test = SpikeTest(settings), best = 0.0
            for index in 0..<60 {
                test.add(spikes[index] ?? 0, settings)
                best = max(best, test.score(settings))
            }
            return best
        }
        XCTAssertLessThan(highest([10: 1e6]), 1, "one glitch of any size")
        XCTAssertLessThan(highest([10: 1e6, 16: 3.1]), 1, "a glitch beside a spike of natural size")
        XCTAssertLessThan(highest([10: 3.1, 16: 3.1]), 1, "two of natural size")
        XCTAssertGreaterThanOrEqual(highest([10: 12, 16: 12]), 1, "two large ones")
        XCTAssertGreaterThanOrEqual(highest([10: 3.5, 16: 3.5, 22: 3.5, 28: 3.5]), 1, "four of natural size")
    }
}

final class RepeatedSampleTests: XCTestCase {
    /// A lag that grows shows samples of the primary a second time: a hiccup that was judged is not judged again.
    func testAHiccupIsOneWhenTheLagGrows() {
        let settings = DriftConfiguration()
        func highest(lagAfter: Int) -> Double {
            var track = KPITrack(name: "disk_latency_ms", settings), noise = Noise(5), best = 0.0
            for index in 0..<420 {
                track.take(primary: index == 400 ? 40 : exp(0.1 * noise.normal()), shadow: 1.2, settings)
                track.judge(time: Double(index) * 60, step: 60, lag: index > 400 ? lagAfter : 0, load: 1, settings)
                if index >= 400 { best = max(best, track.score) }
            }
            return best
        }
        XCTAssertEqual(highest(lagAfter: 4), highest(lagAfter: 0), accuracy: 0.05)
    }
}
