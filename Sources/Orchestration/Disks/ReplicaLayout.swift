import ControlProtocol
import Foundation
import FoundationXML

/// Where a domain's disks lie on the shadow's host, and the change that this makes to its XML.
struct ReplicaLayout: Codable, Sendable, Equatable {
    /// Paths of the replicas by target.
    var replicas: [String: String] = [:]
    /// Bytes that the guest sees of a replica whose device is larger than the disk, because its pool rounds up.
    var visibleBytes: [String: UInt64] = [:]
    /// Drives whose medium the shadow's host does not have.
    var emptied: [String] = []

    var isEmpty: Bool { replicas.isEmpty && emptied.isEmpty }

    /// Any domain's XML with its disks as they are here.
    func rewrite(_ xml: String) throws -> String {
        guard !isEmpty else { return xml }
        guard let document = try? XMLDocument(xmlString: xml), let root = document.rootElement(), root.name == "domain" else {
            throw ControlFailure("Libvirt's XML of the domain cannot be parsed")
        }
        apply(to: root)
        return root.xmlString
    }

    func apply(to root: XMLElement) {
        for case let disk as XMLElement in (try? root.nodes(forXPath: "devices/disk")) ?? [] {
            guard let target = disk.elements(forName: "target").first?.attribute(forName: "dev")?.stringValue else { continue }
            if emptied.contains(target) { Self.empty(disk) }
            if let path = replicas[target] { point(disk, at: path, visibleBytes: visibleBytes[target]) }
        }
    }

    /// What belongs to the source: its chain, its keys and labels, the job that copies it.
    private static let ofTheSource = ["source", "backingStore", "mirror", "auth", "encryption"]

    private static func empty(_ disk: XMLElement) {
        for name in ofTheSource { disk.elements(forName: name).forEach { $0.detach() } }
        disk.set("type", "file")
    }

    private func point(_ disk: XMLElement, at path: String, visibleBytes: UInt64?) {
        for name in Self.ofTheSource { disk.elements(forName: name).forEach { $0.detach() } }
        let isBlock = Self.isDevice(path)
        disk.set("type", isBlock ? "block" : "file")
        let driver = disk.elements(forName: "driver").first ?? disk.add("driver")
        driver.set("type", "raw")
        // These are about qcow2 and backing files, neither of which a replica has.
        driver.elements(forName: "metadata_cache").forEach { $0.detach() }
        for name in ["copy_on_read", "discard_no_unref"] { driver.removeAttribute(forName: name) }
        let source = disk.add("source")
        source.set(isBlock ? "dev" : "file", path)
        if let visibleBytes {
            let slice = source.add("slices").add("slice")
            slice.set("type", "storage")
            slice.set("offset", "0")
            slice.set("size", "\(visibleBytes)")
        }
    }

    /// Pools give devices below /dev, and nothing else lies there but shared memory.
    static func isDevice(_ path: String) -> Bool { path.hasPrefix("/dev/") && !path.hasPrefix("/dev/shm/") }

    /// The destination for `virDomainBlockCopy`: an export of an NBD server on a unix socket.
    ///
    /// With `discard` QEMU passes on what the guest trims; without, the export would keep what the disk has lost. It also makes QEMU (7.2 tried)
    /// begin with one WRITE_ZEROES over the whole export and copy what is allocated after that: during the first copy the export's content
    /// says nothing about the guest's disk, and must not be taken for a change of it.
    static func mirrorDestinationXML(socket: String, export: String) -> String {
        let disk = XMLElement(name: "disk")
        disk.set("type", "network")
        disk.set("device", "disk")
        let driver = disk.add("driver")
        driver.set("name", "qemu")
        driver.set("type", "raw")
        driver.set("discard", "unmap")
        let source = disk.add("source")
        source.set("protocol", "nbd")
        source.set("name", export)
        let host = source.add("host")
        host.set("transport", "unix")
        host.set("socket", socket)
        return disk.xmlString
    }
}
