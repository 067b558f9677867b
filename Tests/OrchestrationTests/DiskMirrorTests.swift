import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform
import XCTest
@testable import Orchestration

/// A real QEMU, paused, whose disk is copied to a real `qemu-nbd`.
final class DiskMirrorTests: XCTestCase {
    nonisolated(unsafe) private static var daemon: Result<PrivateDaemon, any Error>?
    private static let bytes = 4 << 20
    private var daemon: PrivateDaemon!
    private var connection: Connection!
    private var domain: Domain!
    private var folder = ""
    private var server: Process?
    private var mirror: DiskMirror!

    override class func setUp() {
        daemon = Result { try PrivateDaemon() }
        if case .success(let daemon)? = daemon { daemon.start() }
    }

    override class func tearDown() {
        if case .success(let daemon)? = daemon { daemon.remove() }
        daemon = nil
    }

    override func setUpWithError() throws {
        daemon = try Self.daemon?.get()
        guard FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-nbd") else { throw XCTSkip("qemu-nbd is not installed") }
        connection = try daemon.connect()
        let name = String(UUID().uuidString.prefix(8))
        folder = "\(daemon.folder)/disks/\(name)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        // Every 64 KiB chunk differs, but for the last quarter, which is a hole.
        var content = Data()
        while content.count < Self.bytes * 3 / 4 { content.append(contentsOf: withUnsafeBytes(of: content.count) { Array($0) } + [UInt8](repeating: 7, count: 56)) }
        content.append(Data(count: Self.bytes - content.count))
        try content.write(to: URL(fileURLWithPath: "\(folder)/source.img"))
        domain = try connection.create(xml: daemon.guestXML(name: name, disk: "\(folder)/source.img"), flags: [.paused])
        mirror = DiskMirror(domain: LocalDomain(uuid: domain.uuid, name: name) { [connection] in connection! }, target: "vda", socket: "\(folder)/nbd.sock")
    }

    override func tearDown() {
        try? domain?.destroy()
        stopServer()
        connection?.close()
    }

    private func startServer(bytes: Int = DiskMirrorTests.bytes) throws {
        // Old content, so that zeros have to be copied as well.
        try Data(repeating: 0xEE, count: bytes).write(to: URL(fileURLWithPath: "\(folder)/copy.img"))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-nbd")
        process.arguments = ["--persistent", "-k", mirror.socket, "-f", "raw", "-x", "vda", "--discard=unmap", "\(folder)/copy.img"]
        try process.run()
        server = process
        XCTAssertTrue(eventually { access(mirror.socket, F_OK) == 0 })
    }

    private func stopServer() {
        guard let server else { return }
        kill(server.processIdentifier, SIGKILL)
        server.waitUntilExit()
        self.server = nil
    }

    private func content(_ name: String) throws -> Data { try Data(contentsOf: URL(fileURLWithPath: "\(folder)/\(name)")) }
    private func soon(_ seconds: Double = 20) -> MonotonicTime { MonotonicTime.now.adding(milliseconds: seconds * 1000) }

    func testCopyUntilReadyAndEnd() throws {
        let events = Recorder<BlockJobEvent>()
        let subscription = try connection.onBlockJob(domain: domain) { [mirror] event in
            mirror?.note(event)
            events.append(event)
        }
        defer { subscription.cancel() }
        XCTAssertEqual(try mirror.poll(), .none)
        XCTAssertEqual(mirror.status(replica: nil), DiskStatus(target: "vda", state: .waiting))
        try startServer()
        try mirror.start()
        XCTAssertEqual(try mirror.awaitReady(until: soon()), .ready)
        XCTAssertEqual(try mirror.poll(), .ready)
        let status = mirror.status(replica: "/r")
        XCTAssertEqual(status, DiskStatus(target: "vda", replica: "/r", state: .ready, syncedBytes: status.totalBytes, totalBytes: status.totalBytes))
        XCTAssertGreaterThan(status.totalBytes, 0)
        XCTAssertEqual(try content("copy.img"), try content("source.img"))
        let definition = try DomainDefinition(xml: domain.xml())
        XCTAssertEqual(definition.disks[0].mirror, .init(isReady: true, path: mirror.socket))
        XCTAssertEqual(DiskMirror.leftOvers(definition, folder: daemon.folder), ["vda"])
        XCTAssertNotNil(events.first { $0.status == .ready })
        try mirror.abort()
        XCTAssertNil(try domain.blockJobInfo(disk: "vda"))
        guard case .ended = try mirror.poll() else { return XCTFail("\(mirror.current)") }
        // Once more, with nothing to end, and then with the same server.
        try mirror.abort()
        try mirror.start()
        XCTAssertEqual(try mirror.awaitReady(until: soon()), .ready)
        try mirror.abort()
    }

    /// Without libvirt's events: what `poll` sees must be enough.
    func testReadyIsSeenWithoutEvents() throws {
        try startServer()
        try mirror.start()
        XCTAssertEqual(try mirror.awaitReady(until: soon()), .ready)
        try mirror.abort()
    }

    func testASlowCopyAndAServerThatDies() throws {
        let subscription = try connection.onBlockJob(domain: domain) { [mirror] in mirror?.note($0) }
        defer { subscription.cancel() }
        try startServer()
        try mirror.start(bytesPerSecond: 1 << 20)
        XCTAssertEqual(try domain.blockJobInfo(disk: "vda")?.bandwidthBytesPerSecond, 1 << 20)
        guard case .copying(let done, let total) = try mirror.awaitReady(until: soon(0.3)) else { return XCTFail("\(mirror.current)") }
        XCTAssertLessThan(done, total)
        stopServer()
        guard case .ended(let reason) = try mirror.awaitReady(until: soon(30)) else { return XCTFail("\(mirror.current)") }
        XCTAssertTrue(reason.contains("with an error"), reason)
        XCTAssertNil(try domain.blockJobInfo(disk: "vda"))
        XCTAssertTrue(try domain.isActive())
    }

    func testALeftOverOfAnEarlierService() throws {
        try startServer()
        try mirror.start(bytesPerSecond: 64 << 10)
        let local = mirror.domain
        let definition = try DomainDefinition(xml: domain.xml())
        let plan = try DiskPlan.make(domain, definition, ownFolders: [folder])
        XCTAssertEqual(plan.replicas.map(\.target), ["vda"])
        // The same job, were it not ours.
        guard case .refused(let reason, _) = try DiskPlan.make(domain, definition, ownFolders: ["/elsewhere"]).entries[0].decision else { return XCTFail() }
        XCTAssertTrue(reason.contains("block job"), reason)
        try DiskMirror.abortLeftOvers(of: local, folder: "/elsewhere")
        XCTAssertNotNil(try domain.blockJobInfo(disk: "vda"))
        try DiskMirror.abortLeftOvers(of: local, folder: folder)
        XCTAssertNil(try domain.blockJobInfo(disk: "vda"))
    }

    func testNoServer() throws {
        XCTAssertThrowsError(try mirror.start())
        guard case .ended = try mirror.poll() else { return XCTFail("\(mirror.current)") }
        XCTAssertNil(try domain.blockJobInfo(disk: "vda"))
    }

    /// A pool may round a replica's size up; the guest must not see it, nor what is copied from there when it goes back.
    func testADeviceThatIsLargerThanTheDisk() throws {
        let visible = UInt64(Self.bytes) - 512
        try domain.destroy()
        let layout = ReplicaLayout(replicas: ["vda": "\(folder)/source.img"], visibleBytes: ["vda": visible])
        let xml = try layout.rewrite(daemon.guestXML(name: domain.name, disk: "/absent.img").replacingOccurrences(of: "<memory", with: "<uuid>\(domain.uuid)</uuid><memory"))
        domain = try connection.create(xml: xml, flags: [.paused])
        let plan = try DiskPlan.make(domain, DomainDefinition(xml: domain.xml()), ownFolders: [])
        XCTAssertEqual(plan.replicas.first?.capacityBytes, visible)
        try startServer(bytes: Int(visible))
        try mirror.start()
        XCTAssertEqual(try mirror.awaitReady(until: soon()), .ready)
        XCTAssertEqual(try content("copy.img"), try content("source.img").prefix(Int(visible)))
        try mirror.abort()
    }

    func testThePlanOfARealDomain() throws {
        let plan = try DiskPlan.make(domain, DomainDefinition(xml: domain.xml()), ownFolders: [])
        XCTAssertEqual(plan.replicas, [ReplicaRequest(target: "vda", capacityBytes: UInt64(Self.bytes), allocationBytes: plan.replicas.first?.allocationBytes ?? 0, pool: nil,
                                                      volume: "source.img", sourcePath: "\(folder)/source.img")])
        XCTAssertEqual(try plan.sizeChanges(domain), [])
        _ = try domain.monitor(name: "block_resize", arguments: ["node-name": .string("libvirt-1-format"), "size": .integer(8 << 20)])
        XCTAssertEqual(try plan.sizeChanges(domain), [.init(target: "vda", was: UInt64(Self.bytes), now: 8 << 20)])
        // In a pool it is known by the names there.
        let pool = try connection.createStoragePool(xml: "<pool type='dir'><name>images</name><target><path>\(folder)</path></target></pool>")
        defer { try? pool.destroy() }
        let inPool = try DiskPlan.make(domain, DomainDefinition(xml: domain.xml()), ownFolders: [])
        XCTAssertEqual(inPool.replicas.first?.pool, "images")
        XCTAssertEqual(inPool.replicas.first?.volume, "source.img")
        // So is one that came after the pool's last refresh.
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: "\(folder)/late.img"))
        let late = try connection.create(xml: daemon.guestXML(name: "late", disk: "\(folder)/late.img"), flags: [.paused])
        defer { try? late.destroy() }
        let lately = try DiskPlan.make(late, DomainDefinition(xml: late.xml()), ownFolders: [])
        XCTAssertEqual([lately.replicas.first?.pool, lately.replicas.first?.volume], ["images", "late.img"])
    }
}
