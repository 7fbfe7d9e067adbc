module texture-server/tests

go 1.24
