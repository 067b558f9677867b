import XCTest
@testable import Libvirt

final class StorageTests: XCTestCase {
    private var connection: Connection!

    override func setUpWithError() throws { connection = try Connection.open("test:///default") }
    override func tearDown() { connection.close() }

    func testDefaultPool() throws {
        let pool = try connection.storagePool(name: "default-pool")
        XCTAssertEqual(try connection.storagePool(uuid: pool.uuid).name, "default-pool")
        XCTAssertTrue(try connection.storagePools([.active]).contains { $0.uuid == pool.uuid })
        XCTAssertFalse(try connection.storagePools([.inactive]).contains { $0.uuid == pool.uuid })
        XCTAssertTrue(try pool.isActive())
        XCTAssertTrue(try pool.isPersistent())
        let info = try pool.info()
        XCTAssertEqual(info.state, .running)
        XCTAssertEqual(info.capacity, 107_374_182_400)
        XCTAssertTrue(try pool.xml().contains("<pool type='dir'>"))
        try pool.refresh()
    }

    func testAbsentPoolAndVolume() throws {
        XCTAssertEqual(libvirtError { _ = try connection.storagePool(name: "absent") }?.kind, .noStoragePool)
        let pool = try connection.storagePool(name: "default-pool")
        XCTAssertEqual(libvirtError { _ = try pool.volume(name: "absent") }?.kind, .noStorageVolume)
        XCTAssertEqual(libvirtError { _ = try connection.storageVolume(path: "/absent") }?.kind, .noStorageVolume)
    }

    func testVolume() throws {
        let pool = try connection.storagePool(name: "default-pool")
        let xml = "<volume><name>replica.img</name><capacity unit='bytes'>1048576</capacity><allocation>0</allocation></volume>"
        let volume = try pool.createVolume(xml: xml)
        XCTAssertNotNil(libvirtError { _ = try pool.createVolume(xml: xml) })
        XCTAssertEqual(try volume.path(), "/default-pool/replica.img")
        let info = try volume.info()
        XCTAssertEqual(info.kind, .file)
        XCTAssertEqual(info.capacity, 1_048_576)
        XCTAssertEqual(try pool.volumes().map(\.name), ["replica.img"])
        XCTAssertEqual(try pool.volume(name: "replica.img").key, volume.key)
        XCTAssertEqual(try connection.storageVolume(path: volume.path()).key, volume.key)
        XCTAssertEqual(try connection.storageVolume(key: volume.key).name, volume.name)
        XCTAssertEqual(try volume.pool().uuid, pool.uuid)
        XCTAssertTrue(try volume.xml().contains("replica.img"))
        try volume.delete()
        XCTAssertEqual(try pool.volumes().count, 0)
    }

    func testPoolsLife() throws {
        let pool = try connection.defineStoragePool(xml: "<pool type='dir'><name>own</name><target><path>/own</path></target></pool>")
        XCTAssertFalse(try pool.isActive())
        try pool.build()
        try pool.start()
        XCTAssertTrue(try pool.isActive())
        try pool.destroy()
        try pool.undefine()
        XCTAssertEqual(libvirtError { _ = try pool.info() }?.kind, .noStoragePool)
        let transient = try connection.createStoragePool(
            xml: "<pool type='dir'><name>transient</name><target><path>/transient</path></target></pool>")
        XCTAssertFalse(try transient.isPersistent())
        try transient.destroy()
    }
}
