/// A guest as its agent tells of it, on demand: the answer to `kpi DOMAIN --inside`. What is absent was not offered, or `notes` say why.
public struct GuestInside: Codable, Sendable, Equatable {
    public struct Process: Codable, Sendable, Equatable {
        public var pid: Int
        public var parent: Int
        public var name: String
        /// As proc(5) has it: `R` runs, `S` sleeps, `D` waits for storage, `Z` is dead, ...
        public var state: String
        public var threads: Int
        public var cpuSeconds: Double
        public var residentBytes: UInt64

        enum CodingKeys: String, CodingKey {
            case pid, parent, name, state, threads
            case cpuSeconds = "cpu_seconds"
            case residentBytes = "resident_bytes"
        }

        public init(pid: Int, parent: Int, name: String, state: String, threads: Int, cpuSeconds: Double, residentBytes: UInt64) {
            (self.pid, self.parent, self.name, self.state, self.threads) = (pid, parent, name, state, threads)
            (self.cpuSeconds, self.residentBytes) = (cpuSeconds, residentBytes)
        }
    }

    /// A library that processes have mapped to be run.
    public struct Library: Codable, Sendable, Equatable {
        public var path: String
        public var processes: Int
        /// The file was replaced or removed since: these processes run what is not there any more.
        public var isDeleted: Bool

        enum CodingKeys: String, CodingKey {
            case path, processes
            case isDeleted = "deleted"
        }

        public init(path: String, processes: Int, isDeleted: Bool) { (self.path, self.processes, self.isDeleted) = (path, processes, isDeleted) }
    }

    public struct FileSystem: Codable, Sendable, Equatable {
        public var mountpoint: String
        public var type: String?
        public var usedBytes: Double?
        public var totalBytes: Double?

        enum CodingKeys: String, CodingKey {
            case mountpoint, type
            case usedBytes = "used_bytes"
            case totalBytes = "total_bytes"
        }

        public init(mountpoint: String, type: String?, usedBytes: Double?, totalBytes: Double?) {
            (self.mountpoint, self.type, self.usedBytes, self.totalBytes) = (mountpoint, type, usedBytes, totalBytes)
        }
    }

    public struct User: Codable, Sendable, Equatable {
        public var name: String
        /// ISO 8601 UTC.
        public var since: String?

        public init(name: String, since: String?) { (self.name, self.since) = (name, since) }
    }

    public var schema = ControlProtocolVersion.schema
    public var host: String
    public var domain: String
    public var uuid: String
    /// ISO 8601 UTC.
    public var time: String
    /// Its version; absent: no agent answers.
    public var agent: String?
    public var load1m: Double?
    /// Processes and threads: all, those that run or could, those that wait for storage.
    public var tasks: Int?
    public var tasksRunning: Int?
    public var tasksBlocked: Int?
    /// The largest first.
    public var processes: [Process]?
    /// Those in use by most processes first.
    public var libraries: [Library]?
    public var fileSystems: [FileSystem]?
    public var users: [User]?
    /// The last errors of the journal since the guest's boot, the oldest first.
    public var journal: [String]?
    /// What could not be had, and why.
    public var notes: [String] = []

    enum CodingKeys: String, CodingKey {
        case schema, host, domain, uuid, time, agent, tasks, processes, libraries, users, journal, notes
        case load1m = "load_1m"
        case tasksRunning = "tasks_running"
        case tasksBlocked = "tasks_blocked"
        case fileSystems = "file_systems"
    }

    public init(host: String, domain: String, uuid: String, time: String) {
        (self.host, self.domain, self.uuid, self.time) = (host, domain, uuid, time)
    }
}
