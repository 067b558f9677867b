import Foundation
import FoundationXML

/// What a storage pool's XML says about where its volumes lie.
struct PoolDescription: Equatable {
    var type: String
    /// The folder of its volumes.
    var targetPath: String?

    /// Pools whose volumes are the same ones on every host that has them.
    static let networkTypes: Set<String> = ["netfs", "iscsi", "iscsi-direct", "rbd", "sheepdog", "gluster", "vstorage", "mpath"]
    /// Pools in which a volume can be made by name and opened by path.
    static let usableTypes: Set<String> = ["dir", "fs", "netfs", "logical", "zfs"]

    init(type: String, targetPath: String? = nil) {
        self.type = type
        self.targetPath = targetPath
    }

    init?(_ xml: String?) {
        guard let xml, let root = try? XMLDocument(xmlString: xml).rootElement(), root.name == "pool" else { return nil }
        type = root.attribute(forName: "type")?.stringValue ?? ""
        targetPath = (try? root.nodes(forXPath: "target/path"))?.first?.stringValue
    }

    var isUsable: Bool { Self.usableTypes.contains(type) }
    /// Volumes are plain files of the folder.
    var hasFiles: Bool { ["dir", "fs", "netfs"].contains(type) }
    /// What a volume takes from the pool as soon as it exists.
    func allocation(capacity: UInt64) -> UInt64 { type == "logical" ? capacity : 0 }
}
