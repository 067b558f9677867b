import Foundation

/// What the guest's agent answers (QEMU qga/qapi-schema.json), as far as it is used; members that an agent lacks are absent.
enum AgentReplies {
    struct Info: Decodable {
        struct Command: Decodable {
            var name: String
            var enabled: Bool
        }
        var version: String
        var supported_commands: [Command]
        var enabledNames: Set<String> { Set(supported_commands.filter(\.enabled).map(\.name)) }
    }

    /// `guest-get-load`, agent 10.0.
    struct Load: Decodable {
        var load1m: Double?
        var load5m: Double?
        var load15m: Double?
    }

    /// One CPU of `guest-get-cpustats`, agent 7.1: milliseconds since the guest's start.
    struct CPU: Decodable {
        var user: UInt64?
        var nice: UInt64?
        var system: UInt64?
        var idle: UInt64?
        var iowait: UInt64?
        var irq: UInt64?
        var softirq: UInt64?
        var steal: UInt64?

        /// Not idle.
        var busy: UInt64 { [user, nice, system, irq, softirq, steal].compactMap { $0 }.reduce(0, &+) }
        var total: UInt64 { busy &+ (idle ?? 0) &+ (iowait ?? 0) }
    }

    /// One device of `guest-get-diskstats`, agent 7.1.
    struct Disk: Decodable {
        struct Figures: Decodable {
            var readSectors: UInt64?
            var writeSectors: UInt64?
            /// Milliseconds in which it was busy.
            var totalTicks: UInt64?
            enum CodingKeys: String, CodingKey {
                case readSectors = "read-sectors"
                case writeSectors = "write-sectors"
                case totalTicks = "total-ticks"
            }
        }
        var name: String
        var stats: Figures
        /// A whole disk, neither a partition nor made of others; by a name that a kernel would give.
        var isWhole: Bool {
            guard name.utf8.count <= 32 else { return false }
            return (name.hasPrefix("vd") || name.hasPrefix("sd") || name.hasPrefix("hd")) && name.last?.isNumber == false || name.hasPrefix("nvme") && !name.contains("p")
        }
    }

    struct FileSystem: Decodable {
        var mountpoint: String
        var type: String?
        var usedBytes: Double?
        var totalBytes: Double?
        enum CodingKeys: String, CodingKey {
            case mountpoint, type
            case usedBytes = "used-bytes"
            case totalBytes = "total-bytes"
        }
    }

    struct User: Decodable {
        var user: String?
        /// Seconds since 1970.
        var login: Double?
        enum CodingKeys: String, CodingKey {
            case user
            case login = "login-time"
        }
    }
}
