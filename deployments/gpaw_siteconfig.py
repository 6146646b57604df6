# How GPAW is built here (named by GPAW_CONFIG): serial, with OpenBLAS and FFTW. FFTW makes MgB2 1.8 times as fast.
libraries = ["xc", "openblas", "fftw3"]
fftw = True
mpi = False
scalapack = False
