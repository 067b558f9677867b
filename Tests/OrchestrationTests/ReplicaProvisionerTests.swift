import ControlProtocol
import Foundation
import Glibc
import Libvirt
import XCTest
@testable import Orchestration

/// Against a libvirtd of the tests' own, a pool for each.
final class ReplicaProvisionerTests: XCTestCase {
    nonisolated(unsafe) private static var daemon: Result<PrivateDaemon, any Error>?
    private var daemon: PrivateDaemon!
    private var connection: Connection!
    private var pool: StoragePool!
    private var folder = ""
    private var provisioner: ReplicaProvisioner!

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
        connection = try daemon.connect()
        (pool, folder) = try makePool("p-\(UUID().uuidString.prefix(6))")
        provisioner = ReplicaProvisioner(uuid: UUID().uuidString, domain: "web1", host: "b", stateDirectory: "\(folder)-state") { [connection] in connection! }
    }

    override func tearDown() {
        for domain in (try? connection?.domains()) ?? [] {
            try? domain.destroy()
            try? domain.undefine()
        }
        try? pool?.destroy()
        try? pool?.undefine()
        connection?.close()
    }

    private func makePool(_ name: String) throws -> (StoragePool, String) {
        let path = "\(daemon.folder)/disks/\(name)"
        let pool = try connection.defineStoragePool(xml: "<pool type='dir'><name>\(name)</name><target><path>\(path)</path></target></pool>")
        try pool.build()
        try pool.start()
        return (pool, path)
    }

    private func request(_ target: String = "vda", _ bytes: UInt64 = 4 << 20, pool name: String? = nil, volume: String = "web1.img") -> ReplicaRequest {
        ReplicaRequest(target: target, capacityBytes: bytes, allocationBytes: 0, pool: name ?? pool.name, volume: volume, sourcePath: "/elsewhere/web1.img")
    }

    private func provision(_ requests: [ReplicaRequest]? = nil, media: [MediaRequest] = [], pool: String? = nil, discardStale: Bool = false) throws
        -> ReplicaProvisioner.Provisioned {
        try provisioner.provision(requests ?? [request()], media: media, .init(pool: pool, discardStale: discardStale))
    }

    private func refusal(_ requests: [ReplicaRequest]? = nil, pool: String? = nil, discardStale: Bool = false, file: StaticString = #filePath, line: UInt = #line) -> String {
        controlFailure(file: file, line: line) { _ = try provision(requests, pool: pool, discardStale: discardStale) }?.description ?? ""
    }

    private func disk(_ target: String = "vda") throws -> ReplicaRecord.Disk? { try provisioner.records.read(provisioner.uuid)?.disks[target] }

    private func makeFile(_ name: String, _ bytes: Int) throws { try Data(count: bytes).write(to: URL(fileURLWithPath: "\(folder)/\(name)")) }

    private func write(_ text: String, _ path: String) throws {
        let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
        try file.write(contentsOf: Data(text.utf8))
        try file.close()
    }

    private func beginning(_ path: String) throws -> String {
        let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
        return String(decoding: try file.read(upToCount: 4) ?? Data(), as: UTF8.self)
    }

    private func size(_ path: String) throws -> UInt64 { try ReplicaProvisioner.size(of: path) }

    // MARK: Making and finding

    func testAVolumeIsCreatedOnceAndFoundAgain() throws {
        let first = try provision()
        XCTAssertEqual(first.layout.replicas, ["vda": "\(folder)/web1.img"])
        XCTAssertEqual(first.fresh, ["vda"])
        XCTAssertEqual(first.warnings, [])
        let info = try pool.volume(name: "web1.img").info()
        XCTAssertEqual(info.capacity, 4 << 20)
        XCTAssertLessThan(info.allocation, 1 << 20)
        XCTAssertEqual(try disk()?.origin, .created)
        XCTAssertNil(try disk()?.identity?.modified)
        try write("DATA", "\(folder)/web1.img")
        let second = try provision()
        XCTAssertEqual(second.layout, first.layout)
        XCTAssertEqual(second.fresh, [])
        XCTAssertEqual(try beginning("\(folder)/web1.img"), "DATA")
        // Another proposal of the primary, which may have another name for it: what is known here comes first.
        XCTAssertEqual(try provision([request(volume: "other.img")]).layout, first.layout)
    }

    func testPools() throws {
        XCTAssertTrue(refusal([request(pool: "nowhere")]).hasPrefix("b has no storage pool nowhere for the replica of disk vda. Define it there, or name another with --pool (b has "))
        try pool.destroy()
        XCTAssertEqual(try provision().fresh, ["vda"])
        XCTAssertTrue(try pool.isActive())
        provisioner.remove()
        var request = request("vdb", volume: "b.img")
        request.pool = nil
        XCTAssertTrue(refusal([request]).hasPrefix("Disk vdb (/elsewhere/web1.img) is in no storage pool, so b cannot tell where its replica belongs. Name a pool with --pool (b has "))
        request.sourcePath = "\(folder)/b.img"
        XCTAssertEqual(try provision([request]).layout.replicas, ["vdb": "\(folder)/b.img"])
    }

    func testAnotherPoolByOrder() throws {
        _ = try provision()
        let (other, path) = try makePool("q-\(UUID().uuidString.prefix(6))")
        // Two disks of one name from two pools come into one.
        let made = try provision([request(), request("vdb", pool: "elsewhere")], pool: other.name)
        XCTAssertEqual(made.layout.replicas, ["vda": "\(path)/web1.img", "vdb": "\(path)/web1-vdb.raw"])
        XCTAssertEqual(made.warnings, ["\(folder)/web1.img on b, until now known as a copy of disk vda, is not used any more: delete it when nobody needs it"])
        try other.destroy()
        try other.undefine()
    }

    func testSizesFollow() throws {
        _ = try provision()
        try write("DATA", "\(folder)/web1.img")
        XCTAssertEqual(try provision([request("vda", 8 << 20)]).fresh, [])
        XCTAssertEqual(try size("\(folder)/web1.img"), 8 << 20)
        XCTAssertEqual(try beginning("\(folder)/web1.img"), "DATA")
        XCTAssertEqual(try provision([request("vda", 2 << 20)]).fresh, ["vda"])
        XCTAssertEqual(try size("\(folder)/web1.img"), 2 << 20)
    }

    // MARK: What must not be overwritten

    func testAStrangersVolume() throws {
        try makeFile("web1.img", 4 << 20)
        try write("MINE", "\(folder)/web1.img")
        // Libvirt has not heard of it yet.
        XCTAssertEqual(refusal(), "Volume \(folder)/web1.img exists on b, and nothing there knows it as a replica of web1. "
            + "Move it away, or let it be overwritten with --discard-stale: what is in it is lost")
        XCTAssertEqual(try beginning("\(folder)/web1.img"), "MINE")
        XCTAssertNil(try disk())
        XCTAssertEqual(try provision(discardStale: true).fresh, ["vda"])
        XCTAssertEqual(try disk()?.origin, .created)
        XCTAssertEqual(try beginning("\(folder)/web1.img"), "\0\0\0\0")
    }

    func testAnotherDomainsDiskIsNeverTaken() throws {
        _ = try provision()
        let guest = try connection.define(xml: daemon.guestXML(name: "guest", disk: "\(folder)/web1.img"))
        let text = "Volume \(folder)/web1.img on b belongs to domain guest there. Name another pool with --pool"
        XCTAssertEqual(refusal(), text)
        XCTAssertEqual(refusal(discardStale: true), text)
        provisioner.remove()
        XCTAssertEqual(refusal(discardStale: true), text)
        XCTAssertEqual(provisioner.findings([request()], media: [], .init()).map(\.verdict), [.failed])
        try guest.undefine()
        XCTAssertEqual(try provision(discardStale: true).fresh, ["vda"])
    }

    func testWhatOthersAreBasedOnIsNeverTaken() throws {
        try makeFile("web1.img", 4 << 20)
        try pool.refresh()
        _ = try pool.createVolume(xml: "<volume><name>clone.qcow2</name><capacity>4194304</capacity><target><format type='qcow2'/></target>"
            + "<backingStore><path>\(folder)/web1.img</path><format type='raw'/></backingStore></volume>")
        XCTAssertEqual(refusal(discardStale: true), "Volume \(folder)/web1.img on b is what volume clone.qcow2 is based on. Move it away, or name another pool with --pool")
    }

    func testTheGuestItselfRunsHere() throws {
        let xml = daemon.guestXML(name: "web1").replacingOccurrences(of: "<memory", with: "<uuid>\(provisioner.uuid)</uuid><memory")
        let guest = try connection.create(xml: xml, flags: [.paused])
        XCTAssertEqual(refusal(), "Domain web1 is active on b: its disks there cannot be replicas")
        try guest.destroy()
    }

    func testNothingIsTouchedUnlessAllIsPossible() throws {
        try makeFile("b.img", 1)
        XCTAssertTrue(refusal([request(), request("vdb", volume: "b.img")]).hasPrefix("Volume \(folder)/b.img exists on b"))
        XCTAssertFalse(FileManager.default.fileExists(atPath: "\(folder)/web1.img"))
        XCTAssertNil(try disk())
    }

    func testAbsurdSizes() {
        for bytes in [0, 1 << 51, UInt64.max] as [UInt64] {
            XCTAssertEqual(refusal([request("vda", bytes)]), "The request for replicas of web1 names sizes that no disk has")
            XCTAssertEqual(provisioner.findings([request("vda", bytes)], media: [], .init()).map(\.verdict), [.failed])
        }
    }

    // MARK: A guest's way there and back

    func testAReplicaThatSomebodyWroteTo() throws {
        _ = try provision()
        try provisioner.noteSettled()
        XCTAssertEqual(try provision().fresh, [])
        try provisioner.noteSettled()
        usleep(20_000)
        try write("BOOT", "\(folder)/web1.img")
        let text = refusal()
        XCTAssertTrue(text.hasPrefix("Volume \(folder)/web1.img on b may hold what exists nowhere else: it was written to at "), text)
        XCTAssertTrue(text.hasSuffix("let it be overwritten with --discard-stale"), text)
        // Taken as it is: most of it may still be right.
        XCTAssertEqual(try provision(discardStale: true).fresh, [])
        XCTAssertEqual(try beginning("\(folder)/web1.img"), "BOOT")
        XCTAssertEqual(try disk()?.status, .replica)
    }

    func testAFormerPrimary() throws {
        let path = "\(daemon.folder)/disks/\(UUID().uuidString).img"
        try Data(count: 4 << 20).write(to: URL(fileURLWithPath: path))
        func plan(_ format: String) throws -> DiskPlan {
            DiskPlan(try Samples.definition(Samples.file("vda", path, format: format)), facts: ["vda": Samples.facts(path, capacity: 4 << 20)])
        }
        // It lies in no pool, and is found by the record alone.
        try provisioner.notePrimary(plan("raw"))
        XCTAssertTrue(refusal().contains("the guest ran on it here, and nobody saw it go"))
        try provisioner.noteFormerPrimary(wentOverAt: nil)
        XCTAssertEqual(try provision([request("vda", 8 << 20)]).layout.replicas, ["vda": path])
        XCTAssertEqual(try size(path), 8 << 20)
        XCTAssertEqual(try disk()?.origin, .formerPrimary)
        XCTAssertTrue(refusal([request("vda", 4 << 20)]).contains("--discard-stale"))
        XCTAssertEqual(try provisioner.deleteVolumes(), ["\(path) on b stays: the guest ran on it before it went over, and it was not created as a replica"])
        // A qcow2 image cannot become one.
        try provisioner.notePrimary(plan("qcow2"))
        try provisioner.noteFormerPrimary(wentOverAt: nil)
        let made = try provision()
        XCTAssertEqual(made.layout.replicas, ["vda": "\(folder)/web1.img"])
        XCTAssertEqual(made.warnings, ["\(path) on b, until now known as a copy of disk vda, is qcow2, which a replica cannot be; it is not used any more: delete it when nobody needs it"])
        try provisioner.noteStale("it was started by hand")
        XCTAssertTrue(refusal().contains("it was started by hand"))
    }

    func testDeletingReplicas() throws {
        _ = try provision([request(), request("vdb", volume: "b.img")])
        try provisioner.noteInUse()
        XCTAssertEqual(try provisioner.deleteVolumes(), ["\(folder)/web1.img on b stays: the guest runs on it", "\(folder)/b.img on b stays: the guest runs on it"])
        try provisioner.noteFormerPrimary(wentOverAt: nil)
        try pool.destroy()
        XCTAssertEqual(try provisioner.deleteVolumes(), [])
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder), [])
        XCTAssertNil(try provisioner.records.read(provisioner.uuid))
        XCTAssertEqual(try provisioner.deleteVolumes(), [])
    }

    // MARK: Media and findings

    func testMedia() throws {
        let path = try daemon.makeDisk("there.iso")
        let media = [MediaRequest(target: "hda", path: path, kind: .removable), MediaRequest(target: "hdb", path: "/absent.iso", kind: .removable)]
        let made = try provision([], media: media)
        XCTAssertEqual(made.layout, ReplicaLayout(emptied: ["hdb"]))
        XCTAssertEqual(made.warnings, ["b lacks /absent.iso: drive hdb of the shadow is empty"])
        for (kind, word) in [(MediaRequest.Kind.readOnlyDisk, "which disk vdb reads"), (.shared, "the shared storage of disk vdb")] {
            let failure = controlFailure { _ = try provision([], media: [.init(target: "vdb", path: "/absent.img", kind: kind)]) }
            XCTAssertEqual(failure?.message, "b lacks /absent.img, \(word)")
        }
    }

    func testFindings() throws {
        try makeFile("taken.img", 1)
        let huge = request("vdc", 1 << 50, volume: "huge.img")
        let findings = provisioner.findings([request(), request("vdb", volume: "taken.img"), huge], media: [.init(target: "hda", path: "/absent.iso", kind: .removable)], .init())
        XCTAssertEqual(findings.map(\.check), ["disk-hda", "replica-vdb", "pool-\(pool.name)"])
        XCTAssertEqual(findings.map(\.verdict), [.warning, .failed, .warning])
        XCTAssertTrue(findings[2].detail.contains("the replicas of vda, vdc may grow to"), findings[2].detail)
        XCTAssertFalse(FileManager.default.fileExists(atPath: "\(folder)/web1.img"), "doctor changes nothing")
        _ = try provision()
        XCTAssertEqual(provisioner.findings([request()], media: [], .init()).map(\.detail), ["\(folder)/web1.img on b becomes the replica of disk vda again"])
        provisioner.remove()
        try pool.destroy()
        XCTAssertEqual(provisioner.findings([request()], media: [], .init()).map(\.verdict), [.warning])
        XCTAssertFalse(try pool.isActive())
    }
}

final class ReplicaSpaceTests: XCTestCase {
    func testRoom() {
        func verdict(_ available: UInt64, thick: Bool = false) -> Finding {
            let requests = ["vda", "vdb"].map { ReplicaRequest(target: $0, capacityBytes: 4 << 20, allocationBytes: 1 << 20, pool: "p", volume: "v", sourcePath: "/v") }
            return ReplicaProvisioner.space(pool: "p", host: "b", available: available, requests, isThick: thick)
        }
        XCTAssertEqual([verdict(8 << 20), verdict(4 << 20), verdict(1 << 20), verdict(4 << 20, thick: true)].map(\.verdict), [.ok, .warning, .failed, .failed])
        XCTAssertEqual(verdict(1 << 20).detail, "1 MiB free in pool p of b, the replicas of vda, vdb need 2 MiB")
    }

    func testVolumeXML() {
        let file = ReplicaProvisioner.volumeXML(name: "a & b", capacity: 10, PoolDescription(type: "dir"))
        for part in ["<name>a &amp; b</name>", "<capacity unit=\"bytes\">10</capacity>", "<allocation unit=\"bytes\">0</allocation>", "<format type=\"raw\""] {
            XCTAssertTrue(file.contains(part), file)
        }
        let device = ReplicaProvisioner.volumeXML(name: "v", capacity: 10, PoolDescription(type: "logical"))
        XCTAssertTrue(device.contains("<allocation unit=\"bytes\">10</allocation>") && !device.contains("format"), device)
    }

    func testPoolDescriptions() {
        let pool = PoolDescription("<pool type='logical'><name>vg</name><target><path>/dev/vg</path></target></pool>")
        XCTAssertEqual(pool, PoolDescription(type: "logical", targetPath: "/dev/vg"))
        XCTAssertNil(PoolDescription("<domain/>"))
        XCTAssertNil(PoolDescription(nil))
        XCTAssertFalse(PoolDescription(type: "rbd").isUsable)
    }

    func testPathsOfADomain() throws {
        let xml = Samples.domain(Samples.file("vda", "/a.qcow2", more: "<backingStore type='file'><source file='/base.img'/></backingStore><mirror><source file='/copy.img'/></mirror>")
            + "<disk type='volume'><source pool='p' volume='v'/></disk><disk type='block'><source dev='/dev/x'/></disk><disk type='network'><source protocol='rbd' name='p/i'/></disk>")
        XCTAssertEqual(VolumeUsers.paths(xml) { "/\($0)/\($1)" }, ["/a.qcow2", "/base.img", "/copy.img", "/p/v", "/dev/x"])
    }
}
