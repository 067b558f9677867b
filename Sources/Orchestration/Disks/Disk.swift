import FoundationXML

extension DomainDefinition {
    /// A `<disk>` as far as replication is concerned.
    struct Disk {
        enum Kind: Equatable {
            case file, block, volume, network, directory
            /// vhost-user, vhost-vdpa, nvme and whatever a newer libvirt has.
            case other(String)
        }

        /// A block job with another end (`<mirror>`).
        struct Mirror: Equatable {
            /// Both ends are equal, and stay so.
            var isReady: Bool
            /// The other end: a file, a device, or the socket of a server.
            var path: String
        }

        var target: String
        var bus: String
        /// `disk`, `cdrom`, `floppy`, `lun`.
        var device: String
        var kind: Kind
        var isReadOnly: Bool
        var isShareable: Bool
        var isTransient: Bool
        /// By QEMU; what is encrypted below or above it is no concern of ours.
        var isEncrypted: Bool
        var isEmpty: Bool
        var format: String
        /// A file or device path, for messages.
        var source: String
        /// `rbd`, `iscsi`, `nbd`, …; empty unless the source is one on the network.
        var networkProtocol: String
        /// Of a source that is a volume; else empty.
        var pool: String
        var volume: String
        var mirror: Mirror?
        var hasBlockJob: Bool { mirror != nil }

        init(_ disk: XMLElement) {
            func value(_ path: String) -> String? { (try? disk.nodes(forXPath: path))?.first?.stringValue }
            func has(_ path: String) -> Bool { (try? disk.nodes(forXPath: path))?.isEmpty == false }
            target = value("target/@dev") ?? "?"
            bus = value("target/@bus") ?? ""
            device = value("@device") ?? "disk"
            kind = switch value("@type") ?? "file" {
            case "file": .file
            case "block": .block
            case "volume": .volume
            case "network": .network
            case "dir": .directory
            case let type: .other(type)
            }
            isReadOnly = has("readonly")
            isShareable = has("shareable")
            isTransient = has("transient")
            isEncrypted = has("encryption") || has("source/encryption")
            format = value("driver/@type") ?? "raw"
            source = value("source/@file") ?? value("source/@dev") ?? value("source/@name") ?? value("source/@volume") ?? ""
            networkProtocol = value("source/@protocol") ?? ""
            pool = value("source/@pool") ?? ""
            volume = value("source/@volume") ?? ""
            // A removable medium that was missing at the start leaves an element without a path (startupPolicy='optional').
            isEmpty = !has("source") || (device != "disk" && kind != .network && source.isEmpty)
            mirror = has("mirror") ? Mirror(isReady: value("mirror/@ready") == "yes",
                                            path: value("mirror/source/host/@socket") ?? value("mirror/source/@file") ?? value("mirror/source/@dev") ?? "") : nil
        }
    }
}
