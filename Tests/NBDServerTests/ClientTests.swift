import Foundation
import NBDServer
import Platform
import XCTest

/// The clients that people have: libnbd's and QEMU's.
final class ClientTests: XCTestCase {
    private static let diskBytes = 16 << 20
    private let failures = Guarded<[String]>([])

    /// A folder with `source` (data and holes) and `target` (all hole), the latter exported as "disk".
    private func serving(_ change: (Folder) throws -> [any NBDExport], _ body: (Folder, String) throws -> Void) throws {
        let folder = try Folder()
        try makeDisk(folder("source"), bytes: Self.diskBytes)
        try makeDisk(folder("target"), bytes: Self.diskBytes, empty: true)
        let failures = self.failures
        let server = try NBDServer(path: folder("s"), mode: 0o600, exports: try change(folder)) { event in
            if case .disconnected(_, _, .some(let error)) = event { failures.change { $0.append("\(error)") } }
        }
        server.start()
        defer { server.stop() }
        try body(folder, "nbd+unix:///disk?socket=\(folder("s"))")
    }

    private func serving(_ body: (Folder, String) throws -> Void) throws {
        try serving({ [try FileExport(path: $0("target"), name: "disk", description: "A target")] }, body)
    }

    private func assertSame(_ a: String, _ b: String, file: StaticString = #filePath, line: UInt = #line) {
        XCTAssertTrue(FileManager.default.contentsEqual(atPath: a, andPath: b), "\(a) and \(b) differ", file: file, line: line)
    }

    func testCopyInAndOut() throws {
        let nbdcopy = try Tool("nbdcopy")
        for extra in [["--connections=1"], ["--connections=4", "--threads=4"], ["--synchronous"], ["--request-size=1048576"],
                      ["--request-size=4096", "--requests=64"], ["--allocated"]] {
            try serving { folder, uri in
                var (status, output) = try nbdcopy.run(extra + [folder("source"), uri], in: folder)
                XCTAssertEqual(status, 0, "\(extra): \(output)")
                assertSame(folder("source"), folder("target"))
                if extra != ["--allocated"] { XCTAssertLessThan(allocatedBytes(folder("target")), Self.diskBytes / 2, "\(extra)") }
                (status, output) = try nbdcopy.run(extra + [uri, folder("out")], in: folder)
                XCTAssertEqual(status, 0, "\(extra): \(output)")
                assertSame(folder("source"), folder("out"))
            }
        }
        XCTAssertEqual(failures.read { $0 }, [])
    }

    func testInformation() throws {
        let nbdinfo = try Tool("nbdinfo")
        try serving { folder, uri in
            let about = try nbdinfo.succeed("--json", uri, in: folder)
            let root = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(about.utf8)) as? [String: Any])
            XCTAssertEqual(root["protocol"] as? String, "newstyle-fixed")
            XCTAssertEqual(root["structured"] as? Bool, true)
            let export = try XCTUnwrap((root["exports"] as? [[String: Any]])?.first)
            XCTAssertEqual(export["export-name"] as? String, "disk")
            XCTAssertEqual(export["description"] as? String, "A target")
            XCTAssertEqual(export["export-size"] as? Int, Self.diskBytes)
            XCTAssertEqual(export["contexts"] as? [String], ["base:allocation"])
            for flag in ["can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
                XCTAssertEqual(export[flag] as? Bool, true, flag)
            }
            for flag in ["is_read_only", "is_rotational", "can_cache"] { XCTAssertEqual(export[flag] as? Bool, false, flag) }
            XCTAssertEqual(export["block_size_minimum"] as? Int, 1)
            XCTAssertEqual(export["block_size_preferred"] as? Int, 65536)
            XCTAssertEqual(export["block_size_maximum"] as? Int, 1 << 20)
        }
    }

    func testListAndWrongName() throws {
        let nbdinfo = try Tool("nbdinfo")
        try serving({ [try FileExport(path: $0("source"), name: "a", isReadOnly: true), MemoryExport("b", description: "Second")] }) { folder, uri in
            let list = try nbdinfo.succeed("--list", "nbd+unix:///?socket=\(folder("s"))", in: folder)
            XCTAssertTrue(list.contains("export=\"a\"") && list.contains("export=\"b\"") && list.contains("Second"), list)
            let (status, output) = try nbdinfo.run([uri], in: folder)
            XCTAssertNotEqual(status, 0)
            XCTAssertTrue(output.contains("for export: disk"), output)
        }
    }

    func testMap() throws {
        let (nbdinfo, img) = (try Tool("nbdinfo"), try Tool("qemu-img"))
        try serving({ [try FileExport(path: $0("source"), name: "disk", isReadOnly: true)] }) { folder, uri in
            let lines = try nbdinfo.succeed("--map", uri, in: folder).split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
            XCTAssertEqual(lines.count, Self.diskBytes / 2 / (128 << 10) * 2, "the last hole reaches to the end")
            for (index, line) in lines.enumerated() {
                XCTAssertEqual(Array(line.prefix(1)) + Array(line.suffix(1)), ["\(index * (64 << 10))", index % 2 == 0 ? "data" : "hole,zero"])
            }
            let map = try img.succeed("map", "--output=json", "-f", "raw", uri, in: folder)
            let extents = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(map.utf8)) as? [[String: Any]])
            XCTAssertEqual(extents.count, lines.count)
            XCTAssertEqual(extents[1]["zero"] as? Bool, true)
        }
    }

    func testConvertAndCompare() throws {
        let img = try Tool("qemu-img")
        try serving { folder, uri in
            try img.succeed("convert", "-n", "-f", "raw", "-O", "raw", folder("source"), uri, in: folder)
            assertSame(folder("source"), folder("target"))
            XCTAssertLessThan(allocatedBytes(folder("target")), Self.diskBytes / 2)
            try img.succeed("compare", "-f", "raw", "-F", "raw", folder("source"), uri, in: folder)
            try img.succeed("convert", "-f", "raw", "-O", "qcow2", uri, folder("out.qcow2"), in: folder)
            try img.succeed("compare", "-f", "raw", "-F", "qcow2", uri, folder("out.qcow2"), in: folder)
            try img.succeed("convert", "-W", "-m", "16", "-n", "-f", "qcow2", "-O", "raw", folder("out.qcow2"), uri, in: folder)
            assertSame(folder("source"), folder("target"))
        }
        XCTAssertEqual(failures.read { $0 }, [])
    }

    func testPatterns() throws {
        let io = try Tool("qemu-io")
        try serving { folder, uri in
            let output = try io.succeed(
                "-f", "raw", "-t", "none",
                "-c", "write -P 0xab 4k 8k", "-c", "read -P 0xab 4k 8k", "-c", "read -P 0 0 4k", "-c", "read -P 0 12k 1M",
                "-c", "write -f -P 0xcd 1001 3", "-c", "read -P 0xcd 1001 3", "-c", "read -P 0 1004 20",
                "-c", "write -z 4k 4k", "-c", "read -P 0 4k 4k", "-c", "write -z -u 8k 4k", "-c", "read -P 0 8k 4k",
                "-c", "write -P 0x11 8M 4M", "-c", "discard 8M 4M", "-c", "write -z -u -f 8M 1M", "-c", "read -P 0 8M 1M",
                "-c", "write -P 0x22 16776704 512", "-c", "read -P 0x22 16776704 512", "-c", "aio_write -P 0x33 1M 64k",
                "-c", "aio_write -P 0x33 2M 64k", "-c", "aio_flush", "-c", "read -P 0x33 2M 64k", "-c", "flush", uri, in: folder)
            XCTAssertFalse(output.contains("verification failed"), output)
            XCTAssertFalse(output.contains("failed"), output)
        }
        XCTAssertEqual(failures.read { $0 }, [])
    }

    func testFlagsReachTheExport() throws {
        let io = try Tool("qemu-io")
        let export = MemoryExport(bytes: 1 << 20)
        try serving({ _ in [export] }) { folder, uri in
            try io.succeed("-f", "raw", "-t", "none", "-c", "write -f -P 1 0 4k", "-c", "write -z 4k 4k", "-c", "write -z -u 8k 4k",
                           "-c", "discard 12k 4k", "-c", "flush", uri, in: folder)
            let expected = ["write 0 4096 fua", "zeroes 4096 4096", "zeroes 8192 4096 trim", "trim 12288 4096", "flush"]
            XCTAssertEqual(Array(export.calls.filter { !$0.hasPrefix("read") }.prefix(5)), expected)
        }
    }

    func testReadOnly() throws {
        let (io, nbdcopy) = (try Tool("qemu-io"), try Tool("nbdcopy"))
        try serving({ [try FileExport(path: $0("source"), name: "disk", isReadOnly: true)] }) { folder, uri in
            try nbdcopy.succeed(uri, folder("out"), in: folder)
            assertSame(folder("source"), folder("out"))
            let (status, output) = try io.run(["-f", "raw", "-c", "write 0 4k", uri], in: folder)
            XCTAssertNotEqual(status, 0, output)
            XCTAssertNotEqual(try nbdcopy.run([folder("source"), uri], in: folder).status, 0)
            assertSame(folder("source"), folder("out"))
        }
    }

    /// Killed between two writes it leaves nothing behind either, but then it has to be killed again: the middle is what is looked at here.
    func testClientKilledInTheMiddleOfAWrite() throws {
        let nbdcopy = try Tool("nbdcopy")
        let isAbandoned = try (1...10).contains { _ in try killClient(nbdcopy) }
        XCTAssertTrue(isAbandoned, "Ten times never in the middle of a write")
    }

    /// Returns whether a write was cut off by it.
    private func killClient(_ nbdcopy: Tool) throws -> Bool {
        let export = MemoryExport(bytes: Self.diskBytes)
        let gate = DispatchSemaphore(value: 0)
        export.gate = gate
        export.takesAtOnce = false
        var isAbandoned = false
        failures.change { $0 = [] }
        try serving({ _ in [export] }) { folder, uri in
            let process = try nbdcopy.start(["--request-size=1048576", "--allocated", folder("source"), uri], output: folder("killed"))
            for _ in 0..<3 { gate.signal() }
            let deadline = Date().addingTimeInterval(10)
            while export.calls.count < 3, Date() < deadline { usleep(1000) }
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
            for _ in 0..<100 { gate.signal() }
            XCTAssertNotNil(failures.wait(until: .now.adding(milliseconds: 5000)) { $0.isEmpty ? nil : true })
            XCTAssertTrue(export.isBalanced)
            isAbandoned = export.calls.last == "abandon"
            // And the export is free for the next one.
            try nbdcopy.succeed(folder("source"), uri, in: folder)
            XCTAssertTrue(export.content == Array(try Data(contentsOf: URL(fileURLWithPath: folder("source")))))
        }
        return isAbandoned
    }
}
