import Glibc
import XCTest

/// Something breaks at a random moment of a swap. Wherever the guest ends up: it runs at one place, and nothing is lost.
class SwapFaultTests: HostsTestCase {
    var rounds: Int { 4 }

    func testCableCut() throws {
        // hosts.sh takes some 50 ms to pull it.
        try broken("cable cut", lead: 0.06) { [self] _ in
            try hosts.hosts("cut")
            pauseAtRandom(0.1...7)
            try hosts.hosts("join")
        }
    }

    func testServiceOfThePrimaryKilled() throws { try broken("primary's service killed") { [self] in try hosts.service($0.home).kill() } }
    func testServiceOfTheShadowKilled() throws { try broken("shadow's service killed") { [self] in try hosts.service($0.home.other).kill() } }
    func testSourceWorkerKilled() throws { try broken("source worker killed") { [self] in try killWorkers(on: $0.home) } }
    func testShadowWorkerKilled() throws { try broken("shadow worker killed") { [self] in try killWorkers(on: $0.home.other) } }

    private func killWorkers(on host: Host) throws { try hosts.service(host).workers.forEach { kill($0, SIGKILL) } }

    /// Strikes around the moment at which the swap begins (its command needs 30 to 100 ms to get there, the swap itself 25 ms), or, in
    /// every second round, just after the service has begun it. `lead`: seconds that the strike needs itself.
    private func broken(_ what: String, lead: Double = 0, _ strike: (LedgerGuest) throws -> Void) throws {
        var moved = 0
        var silences: [Double] = []
        var answers: [String] = []
        for round in 1...rounds {
            let guest = try protectedGuest()
            try guest.waitUntilWholeAgain(limit: 30)
            let mark = guest.serial.mark
            let home = guest.home
            let afterBegin = round % 2 == 0 && lead == 0
            let offset = random(0...0.12) - lead
            let log = try hosts.service(home).logMark
            let out = try hosts.folder + "/swap-\(round).out"
            let command = try ChildProcess(["sh", "-c", "sleep \(max(0, -offset)); exec \"$@\"", "sh", TwoHosts.script, "exec", try hosts.folder, home.rawValue, TwoHosts.binary, "swap", guest.name], out: out, err: out)
            if afterBegin {
                _ = try? waitUntil("the swap begins", limit: 1, every: 0.0005) { try hosts.service(home).logText(since: log).contains(": swapping") }
                pauseAtRandom(0...0.02)
            } else {
                usleep(UInt32(max(0, offset) * 1e6))
            }
            try strike(guest)
            let status = command.wait(limit: 120)
            answers.append(status.map { "\($0)" } ?? "none")
            do {
                try waitUntil("the guest runs somewhere", limit: 40) { guest.serial.silence(.a) < 0.2 || guest.serial.silence(.b) < 0.2 }
                // The other copy, if there were one, would be heard by now.
                usleep(1_500_000)
                let there = guest.serial.silence(home.other) < 0.5, here = guest.serial.silence(home) < 0.5
                try require(here != there, here ? "TWO COPIES RUN" : "it stopped again")
                if there {
                    moved += 1
                    try guest.followToOther(mayRepeat: 0)
                    try require(try hosts.domainState(home, guest.name) != "running", "the old copy is active")
                } else {
                    try require(status != 0, "the command said that it went over, but it runs on \(home.name)")
                }
                silences.append(guest.serial.largestGap(since: mark))
                try guest.checkNeverTwice()
                try guest.checkBooks()
            } catch {
                let answer = FileManager.default.contents(atPath: out).map { String(decoding: $0, as: UTF8.self) } ?? ""
                throw TestFailure("Round \(round), \(what) on the way from \(home.name): \(error); the command: \(status.map { "\($0)" } ?? "no end") \(answer.trimmed)")
            }
        }
        report("swap, \(what): went over in \(moved) of \(rounds), exit codes \(answers.joined(separator: " ")); largest silence \(silences.inMilliseconds)")
    }
}
