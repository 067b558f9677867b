import Foundation
import FoundationXML
import Libvirt

/// Which of this host's domains use a path as a disk, or as what a disk is based on.
struct VolumeUsers {
    /// Domain names by canonical path.
    private var users: [String: String] = [:]

    /// Looks at the definitions of all domains, active or not, but for `uuid`'s.
    init(_ connection: Connection, except uuid: String) throws {
        for domain in try connection.domains() where domain.uuid != uuid {
            // The live one shows chains, jobs and hot-plugged disks; the stored one what comes with the next start.
            for flags in [XMLFlags(), .inactive] {
                guard let xml = try? domain.xml(flags: flags) else { continue }
                for path in Self.paths(xml, resolve: { pool, volume in try? connection.storagePool(name: pool).volume(name: volume).path() }) {
                    users[Self.canonical(path)] = domain.name
                }
            }
        }
    }

    func user(of path: String) -> String? { users[Self.canonical(path)] }

    static func paths(_ xml: String, resolve: (String, String) -> String?) -> [String] {
        guard let root = try? XMLDocument(xmlString: xml).rootElement() else { return [] }
        let sources = ((try? root.nodes(forXPath: "devices/disk//source")) ?? []).compactMap { $0 as? XMLElement }
        return sources.compactMap { source in
            func value(_ name: String) -> String? { source.attribute(forName: name)?.stringValue }
            if let pool = value("pool"), let volume = value("volume") { return resolve(pool, volume) }
            return value("file") ?? value("dev")
        }
    }

    /// One name for what several lead to; a path that leads nowhere is its own.
    static func canonical(_ path: String) -> String {
        guard let buffer = realpath(path, nil) else { return path }
        defer { free(buffer) }
        return String(cString: buffer)
    }

    /// The volume of the pool that is based on `path`, if there is one: overwriting that would destroy it.
    static func overlay(of path: String, in pool: StoragePool) throws -> String? {
        for volume in try pool.volumes() {
            guard let root = try? XMLDocument(xmlString: volume.xml()).rootElement(),
                  let backing = (try? root.nodes(forXPath: "backingStore/path"))?.first?.stringValue, canonical(backing) == canonical(path) else { continue }
            return volume.name
        }
        return nil
    }
}
