import Foundation
import XCTest
@testable import ReplicaStore

/// A process is killed on entering each of its system calls that change something, one after the other; what recovery then makes of
/// it is compared byte for byte with the epoch that it says it is.
final class KillTests: XCTestCase {
    static let seed = 7
    static let epochs = 14
    static let calls = ["pwrite64", "pwritev", "fdatasync", "fsync", "fallocate", "rename", "unlink", "ftruncate", "mkdir"]

    private var folder = ""

    override func setUpWithError() throws {
        try skipUnless(program: "strace", package: "strace")
        let traced = try shell("strace -o /dev/null -e trace=none true")
        guard traced.status == 0 else { throw XCTSkip("Processes cannot be traced here: \(traced.output)") }
        // What is not flushed survives a kill, so memory will do.
        let base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : FileManager.default.temporaryDirectory.path
        folder = "\(base)/replica-store-kill-\(getpid())"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }

    override func tearDown() {
        if !folder.isEmpty { try? FileManager.default.removeItem(atPath: folder) }
    }

    /// Runs the tool in a folder that `setUp` makes, kills it at the `number`th `call`, and copies what is left. False: it got to its end.
    private func kill(_ call: String, _ number: Int, setUp: String, _ command: String, _ place: String) throws -> Bool {
        let run = try shell("""
            \(setUp) || exit 1
            strace -f -qq -o /dev/null -e trace=\(call) -e inject=\(call):signal=KILL:when=\(number) \(command) \(place) 2>&1
            status=$?
            cp -a --sparse=always \(place) \(place)-p
            exit $status
            """)
        if run.status == 0 { return false }
        XCTAssertEqual(run.status, 137, "\(call) \(number): \(run.output)")
        return true
    }

    /// Every folder twice: the memory side survived, or did not.
    private func check(_ tool: String, _ folders: [String], _ what: String) throws {
        for (mode, copies) in [("kill", folders), ("power", folders.map { $0 + "-p" })] {
            let run = try shell("exec \(tool) check \(mode) \(Self.seed) \(Self.epochs) \(copies.joined(separator: " "))")
            XCTAssertEqual(run.status, 0, "\(what): \(run.output)")
        }
        try shell("rm -rf \(folders.flatMap { [$0, $0 + "-p"] }.joined(separator: " "))")
    }

    func testKilledAtEveryStep() throws {
        let tool = try exerciser()
        var points = 0
        for call in Self.calls {
            var folders: [String] = []
            for number in 1... {
                let place = "\(folder)/\(call)\(number)"
                let run = "\(tool) run \(Self.seed) \(Self.epochs)"
                let killed = try kill(call, number, setUp: "\(tool) make \(place)", run, place)
                folders.append(place)
                if !killed { break }
            }
            points += folders.count - 1
            try check(tool, folders, call)
        }
        print("Killed at \(points) system calls")
        XCTAssertGreaterThan(points, 100)
    }

    /// The recovery is killed as well, at every step, and the next one goes on from there.
    func testKilledWhileRecovering() throws {
        let tool = try exerciser()
        var points = 0
        // Runs that end with applied epochs in the journal and another that is not whole.
        for record in [5, 8] {
            let start = "\(folder)/start\(record)"
            XCTAssertTrue(try kill("pwritev", record, setUp: "\(tool) make \(start)", "\(tool) run \(Self.seed) \(Self.epochs)", start))
            XCTAssertEqual(try StoredState.load(folder: start + "/store")?.phase, .consistent)
            for call in Self.calls {
                var folders: [String] = []
                for number in 1... {
                    let place = "\(folder)/r\(record)\(call)\(number)"
                    let killed = try kill(call, number, setUp: "cp -a --sparse=always \(start) \(place)", "\(tool) recover", place)
                    folders.append(place)
                    if !killed { break }
                }
                points += folders.count - 1
                try check(tool, folders, call)
            }
        }
        print("Killed at \(points) system calls of a recovery")
        XCTAssertGreaterThan(points, 15)
    }
}
