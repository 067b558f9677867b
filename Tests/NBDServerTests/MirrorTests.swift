import Foundation
import NBDServer
import Platform
import XCTest

/// What the server is for: QEMU's mirror with copy-mode write-blocking, while somebody writes to the source.
final class MirrorTests: XCTestCase {
    private static let diskBytes = 32 << 20

    /// Runs `blockdev-mirror` from `source` to the export, with writes before and after it is in step, and ends it as libvirt does.
    private func mirror(into export: any NBDExport, _ folder: Folder, maximumPayload: Int = 1 << 20) throws {
        let (daemon, io) = (try Tool("qemu-storage-daemon"), try Tool("qemu-io"))
        let errors = Guarded<[String]>([])
        let server = try NBDServer(path: folder("s"), mode: 0o600, exports: [export], maximumPayload: maximumPayload) { event in
            if case .disconnected(_, _, .some(let error)) = event { errors.change { $0.append("\(error)") } }
        }
        server.start()
        defer { server.stop() }
        let process = try daemon.start([
            "--blockdev", "driver=file,node-name=file,filename=\(folder("source"))", "--blockdev", "driver=raw,node-name=source,file=file",
            "--blockdev", "driver=nbd,node-name=target,export=disk,server.type=unix,server.path=\(folder("s"))",
            "--nbd-server", "addr.type=unix,addr.path=\(folder("n"))",
            "--export", "type=nbd,id=export,node-name=source,name=source,writable=on",
            "--chardev", "socket,id=qmp,path=\(folder("q")),server=on,wait=off", "--monitor", "chardev=qmp",
        ], output: folder("daemon"))
        defer {
            process.terminate()
            process.waitUntilExit()
        }
        let monitor = try Monitor(folder("q"))
        let guest = "nbd+unix:///source?socket=\(folder("n"))"
        func write(_ round: Int) throws {
            var commands = ["-f", "raw"]
            for step in 0..<12 {
                let offset = (step * 2_713_001 + round * 70_000) % (Self.diskBytes - (1 << 20))
                commands += ["-c", "write -P \(1 + (round * 12 + step) % 250) \(offset) \(step % 3 == 0 ? 700_001 : 4096)"]
            }
            commands += ["-c", "write -z -u \(20 << 20) 1M", "-c", "discard 24M 1M", "-c", "write -f -P 7 \(31 << 20) 64k", "-c", "flush", guest]
            let (status, output) = try io.run(commands, in: folder)
            XCTAssertEqual(status, 0, output)
        }
        try monitor.execute("{'execute': 'blockdev-mirror', 'arguments': {'job-id': 'm', 'device': 'source', 'target': 'target', "
            + "'sync': 'full', 'copy-mode': 'write-blocking'}}")
        try write(0)
        try monitor.wait(for: "BLOCK_JOB_READY")
        for round in 1..<5 { try write(round) }
        try monitor.execute("{'execute': 'block-job-cancel', 'arguments': {'device': 'm'}}")
        try monitor.wait(for: "BLOCK_JOB_COMPLETED")
        try monitor.execute("{'execute': 'blockdev-del', 'arguments': {'node-name': 'target'}}")
        _ = errors.wait(until: .now.adding(milliseconds: 5000)) { _ in server.connectionCount == 0 ? true : nil }
        XCTAssertEqual(server.connectionCount, 0)
        XCTAssertEqual(errors.read { $0 }, [])
    }

    func testIntoAFile() throws {
        for payload in [64 << 10, 1 << 20] {
            let folder = try Folder()
            try makeDisk(folder("source"), bytes: Self.diskBytes)
            try makeDisk(folder("target"), bytes: Self.diskBytes, empty: true)
            try mirror(into: try FileExport(path: folder("target"), name: "disk", maximumPayload: payload), folder, maximumPayload: payload)
            XCTAssertTrue(FileManager.default.contentsEqual(atPath: folder("source"), andPath: folder("target")))
        }
    }

    /// As the capture of a disk is: it takes writes and gives nothing back.
    func testIntoAnExportThatCannotBeRead() throws {
        let folder = try Folder()
        try makeDisk(folder("source"), bytes: Self.diskBytes)
        let export = MemoryExport(bytes: Self.diskBytes)
        export.canRead = false
        try mirror(into: export, folder)
        XCTAssertTrue(export.content == Array(try Data(contentsOf: URL(fileURLWithPath: folder("source")))))
        XCTAssertTrue(export.isBalanced)
        XCTAssertFalse(export.calls.contains { $0.hasPrefix("read") })
    }
}
